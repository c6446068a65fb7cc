"""What becomes of the rows of an embedding when the new base's vocabulary is an extended one?"""
