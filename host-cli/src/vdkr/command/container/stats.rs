//! `vdkr stats`: what containers use.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;
use vdkr_core::{
    channel::message::{ContainerReply, ContainerRequest, Reply, Request, Sample},
    container::name,
};

use super::list;
use crate::{
    out,
    vdkr::{
        command::wrong_reply,
        container_args::StatsArgs,
        error::Result,
        format::Format,
        human,
        session::{Session, interruptible, with_session},
        settings::Settings,
    },
};

/// Time between two samples.
const PAUSE: Duration = Duration::from_secs(1);
const HEADS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// Shows it once, or until the user has seen enough.
pub async fn run(settings: &Settings, args: &StatsArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    with_session(settings, "vdkr stats", async |session| {
        let mut before = samples(session, args).await?;
        loop {
            interruptible(async {
                sleep(PAUSE).await;
                Ok(())
            })
            .await?;
            let now = samples(session, args).await?;
            let rows: Vec<Value> = now
                .iter()
                .map(|sample| {
                    let earlier = before.iter().find(|earlier| earlier.id == sample.id);
                    row(sample, earlier, args.no_trunc)
                })
                .collect();
            let text = format.rows(&rows, HEADS)?;
            if args.no_stream {
                crate::output::write(format_args!("{text}"));
                return Ok(0);
            }
            crate::output::clear_screen();
            out!("{}", text.trim_end());
            before = now;
        }
    })
    .await
}

async fn samples(session: &mut Session, args: &StatsArgs) -> Result<Vec<Sample>> {
    let mut names = args.containers.clone();
    if args.all && names.is_empty() {
        names.extend(list(session).await?.into_iter().map(|row| row.id));
        // Without names it is asked for those that run.
        if names.is_empty() {
            return Ok(Vec::new());
        }
    }
    let request = Request::Container(ContainerRequest::Stats { names });
    match session.ask(&request).await? {
        Reply::Container(ContainerReply::Stats { samples }) => Ok(samples),
        other => Err(wrong_reply(&other)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "two decimals are shown")]
fn percent(part: u64, whole: u64) -> String {
    let share = if whole == 0 {
        0.0
    } else {
        part as f64 * 100.0 / whole as f64
    };
    format!("{share:.2}%")
}

fn row(sample: &Sample, before: Option<&Sample>, whole: bool) -> Value {
    let (cpu, time) = before.map_or((0, 0), |before| {
        (
            sample.cpu_us.saturating_sub(before.cpu_us),
            sample.at_us.saturating_sub(before.at_us),
        )
    });
    let pair = |(left, right)| format!("{} / {}", human::size(left), human::size(right));
    let id = if whole {
        &sample.id
    } else {
        name::short(&sample.id)
    };
    json!({
        "Container": id,
        "ID": id,
        "Name": sample.name,
        "CPUPerc": percent(cpu, time),
        "MemUsage": format!(
            "{} / {}",
            human::binary_size(sample.memory),
            human::binary_size(sample.memory_limit)
        ),
        "MemPerc": percent(sample.memory, sample.memory_limit),
        "NetIO": pair(sample.network),
        "BlockIO": pair(sample.disk),
        "PIDs": sample.pids.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_from_two_samples() {
        let sample = |at_us, cpu_us| Sample {
            id: "a".repeat(64),
            at_us,
            cpu_us,
            memory: 1 << 20,
            memory_limit: 4 << 20,
            network: (1500, 0),
            pids: 3,
            ..Sample::default()
        };
        let shown = row(
            &sample(3_000_000, 1_500_000),
            Some(&sample(2_000_000, 1_000_000)),
            false,
        );
        assert_eq!(shown["CPUPerc"], "50.00%");
        assert_eq!(shown["MemUsage"], "1MiB / 4MiB");
        assert_eq!(shown["MemPerc"], "25.00%");
        assert_eq!(shown["NetIO"], "1.5kB / 0B");
        assert_eq!(shown["ID"], "aaaaaaaaaaaa");
        assert_eq!(row(&sample(1, 1), None, false)["CPUPerc"], "0.00%");
    }
}
