"""Music and what it is called as data that training reads: a Ray Data job."""
