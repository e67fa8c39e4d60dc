"""What happened: records, bits files and provenance, in a folder that many runners may share."""
