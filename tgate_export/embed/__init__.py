"""What turns a bundle into a program or a server."""
