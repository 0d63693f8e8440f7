"""One module for each component: `install` what it needs once, `prepare` a directory into a `Recipe`."""
