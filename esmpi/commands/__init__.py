"""The subcommands of `esmpi`, one module each."""
