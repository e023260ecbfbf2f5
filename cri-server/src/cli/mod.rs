//! Administrator subcommands of `cri-server`.
