"""Makes the documents of this folder out of the message models, so that they say what the code does.

It stands beside `shared` and `worker` and not in them: neither a producer nor a worker needs it, and what it makes is
for people who have neither.
"""
