"""A service that has jobs, for the tests of services.chassis.jobs."""
