//! A local container registry for Yocto/OpenEmbedded builds.

use std::process::ExitCode;

fn main() -> ExitCode {
    vdkr_host::registry_cli::main()
}
