"""What kegnet_pl is measured by."""
