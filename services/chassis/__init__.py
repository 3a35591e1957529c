"""What every service stands on: everything that can be derived from a contract is done here, once."""
