"""Searches whose processes are killed, and the account of what that cost them."""
