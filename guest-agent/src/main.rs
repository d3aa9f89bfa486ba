//! `vdkr-agent`: reads its arguments and becomes what they say.

use std::process::ExitCode;

use dlmalloc::GlobalDlmalloc;
use vdkr_agent::{
    args::{self, Mode},
    boot, command, machine, request, run,
};

/// musl gives freed buffers back to the kernel at once, and every new one is made of page faults,
/// which are dear where the processor is emulated. This one keeps up to two megabytes.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    match args::parse(std::process::id(), &words) {
        Ok(Mode::Boot) => boot::main(),
        Ok(Mode::ContainerInit) => run::monitor::main(),
        Ok(Mode::Serve(options)) => match request::serve(&options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("vdkr-agent: cannot serve: {error}");
                ExitCode::FAILURE
            }
        },
        Ok(Mode::Configure(options)) => command::finish(command::configure::configure(&options)),
        Ok(Mode::Pull(options)) => command::finish(command::pull::pull(&options)),
        Ok(Mode::Run(options)) => command::run_finish(command::run::run(&options)),
        Ok(Mode::Status(options)) => command::finish(command::status::status(&options)),
        Ok(Mode::Version) => {
            println!("{}", machine::SOFTWARE);
            ExitCode::SUCCESS
        }
        Ok(Mode::Help) => {
            print!("{}", args::USAGE);
            ExitCode::SUCCESS
        }
        Err(mistake) => {
            eprintln!("vdkr-agent: {mistake}");
            ExitCode::from(2)
        }
    }
}
