"""The stages of in-context pretraining in pieces: for corpora beyond one machine's memory or time.

Each stage divides its work into pieces that need nothing of each other, has an executor make them
(``neighbors.executor``: here, or on a cluster), and reads what they left. A piece calls the same
functions as the in-memory methods of ``neighbors``, and its result is a file.
"""
