"""The services of Nexus COS and the chassis they stand on."""
