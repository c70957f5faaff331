"""The live process of a vehicle: the same engine as in a replay, between messages in and messages out."""
