"""TFRecords become batches."""
