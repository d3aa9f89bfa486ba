//! Containers in a virtual machine of the target's architecture.

fn main() {
    vdkr_host::vdkr::main();
}
