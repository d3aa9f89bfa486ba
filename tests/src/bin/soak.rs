//! A soak of the registry: `soak [SECONDS] [SEED]`, ten minutes by default. Ends with a panic and the seed
//! when anything was lost.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |what: &str| {
        args.next().map(|text| {
            text.parse::<u64>().unwrap_or_else(|error| {
                panic!("{what} {text}: {error}; usage: soak [SECONDS] [SEED]")
            })
        })
    };
    let seconds = number("SECONDS").unwrap_or(600);
    let seed = number("SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    println!("{seconds} seconds, seed {seed}");
    let figures = vdkr_tests::soak::soak(Duration::from_secs(seconds), seed);
    println!("sound after {figures}");
}
