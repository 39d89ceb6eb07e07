"""Subscribing to events: alone from any position, or as a member of a named subscription, whose position is durable."""
