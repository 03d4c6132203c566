"""What two parts of headrace have to agree on: frozen types, protocols and errors."""
