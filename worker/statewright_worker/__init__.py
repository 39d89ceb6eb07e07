"""The governing side of Statewright: rules, storage, the drain and the command line."""
