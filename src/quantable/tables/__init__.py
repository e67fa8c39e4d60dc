"""What is claimed: table files, their claims, and the cells they stand for."""
