//! Soaks: `soak [SECONDS] [SEED]` of the registry, ten minutes by default, and `soak runs [COUNT]` of a
//! machine, 1,000 runs by default. Ends with a panic when anything was lost, or has grown.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() {
    vdkr_tests::process::end_processes_on_panic();
    let mut args = std::env::args().skip(1).peekable();
    let of_machine = args.next_if(|word| word == "runs").is_some();
    let mut number = |what: &str| {
        args.next().map(|text| {
            text.parse::<u64>().unwrap_or_else(|error| {
                panic!("{what} {text}: {error}; usage: soak [SECONDS] [SEED], or soak runs [COUNT]")
            })
        })
    };
    if of_machine {
        let count = number("COUNT").unwrap_or(1000);
        println!("{}", vdkr_tests::runs::runs(count as usize));
        return;
    }
    let seconds = number("SECONDS").unwrap_or(600);
    let seed = number("SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    println!("{seconds} seconds, seed {seed}");
    let figures = vdkr_tests::soak::soak(Duration::from_secs(seconds), seed);
    println!("sound after {figures}");
}
