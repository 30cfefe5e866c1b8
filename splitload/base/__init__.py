"""What every room may use: errors, typed fields, records, atomic writes, scratch folders, machine, cache folder."""
