"""The embedded digits (a parquet data set) and the weights of the small network that scores them."""
