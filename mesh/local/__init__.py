"""The whole platform on one machine: databases, services and edge as children of one supervisor."""
