"""The commands of the project, one a file, and the packages that they share."""
