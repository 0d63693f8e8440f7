"""The four processes of the features service, each wired in one place."""
