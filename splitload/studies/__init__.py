"""What makes the records in results/, and the tables that are made from them: `python -m splitload.studies.NAME`."""
