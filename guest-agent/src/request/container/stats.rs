//! `stats`: what containers use.

use std::{fs, path::Path, rc::Rc};

use vdkr_core::channel::message::{ContainerReply, Done, Reply, Sample};

use super::{Agent, top::pids};
use crate::{container::Entry, machine};

/// One sample of each container named, or of all that run.
pub fn stats(agent: &Agent, names: &[String]) -> Done {
    let entries: Vec<Rc<Entry>> = if names.is_empty() {
        let all = agent.book().all();
        all.into_iter()
            .filter(|entry| entry.live().is_some())
            .collect()
    } else {
        names
            .iter()
            .map(|name| agent.book().find(name))
            .collect::<Result<_, _>>()?
    };
    let samples = entries.iter().map(|entry| sample(entry)).collect();
    Ok(Reply::Container(ContainerReply::Stats { samples }))
}

fn sample(entry: &Entry) -> Sample {
    let mut sample = Sample {
        id: entry.id.clone(),
        name: entry.name(),
        at_us: u64::try_from(machine::uptime().as_micros()).unwrap_or(u64::MAX),
        cpus: std::thread::available_parallelism()
            .map_or(1, |number| u32::try_from(number.get()).unwrap_or(u32::MAX)),
        ..Sample::default()
    };
    let Some(live) = entry.live() else {
        return sample;
    };
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    sample.memory_limit = machine::parse_meminfo(&meminfo).0;
    if let Some(group) = live.container.cgroup() {
        measure(group, &mut sample);
    }
    // In a network of its own, its devices are its own.
    if own_network(live.pid())
        && let Ok(text) = fs::read_to_string(format!("/proc/{}/net/dev", live.pid()))
    {
        sample.network = traffic(&text);
    }
    sample
}

fn measure(group: &Path, sample: &mut Sample) {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| read(name).and_then(|text| text.trim().parse::<u64>().ok());
    sample.cpu_us = read("cpu.stat").map_or(0, |text| field(&text, "usage_usec"));
    let processes = pids(group);
    sample.pids = number("pids.current").unwrap_or(processes.len() as u64);
    sample.memory = match number("memory.current") {
        Some(all) => {
            // As docker counts: without the file cache that can be dropped at once.
            let stat = read("memory.stat").unwrap_or_default();
            all.saturating_sub(field(&stat, "inactive_file"))
        }
        None => processes.iter().map(|&pid| resident(pid)).sum(),
    };
    if let Some(limit) = number("memory.max") {
        sample.memory_limit = sample.memory_limit.min(limit);
    }
    if let Some(text) = read("io.stat") {
        sample.disk = disk_traffic(&text);
    }
}

/// A number in a file of `name number` lines.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(page_size())
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    size.ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

fn own_network(pid: u32) -> bool {
    let id = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let (own, theirs) = (id("self"), id(&pid.to_string()));
    theirs.is_some() && own != theirs
}

/// Bytes received and sent by all devices but the loopback, from `/proc/net/dev`.
fn traffic(text: &str) -> (u64, u64) {
    let mut sums = (0_u64, 0_u64);
    for line in text.lines().skip(2) {
        let Some((device, numbers)) = line.split_once(':') else {
            continue;
        };
        if device.trim() == "lo" {
            continue;
        }
        let mut numbers = numbers
            .split_whitespace()
            .map(|number| number.parse().unwrap_or(0));
        sums.0 = sums.0.saturating_add(numbers.next().unwrap_or(0));
        sums.1 = sums.1.saturating_add(numbers.nth(7).unwrap_or(0));
    }
    sums
}

/// Bytes read and written, from `io.stat`.
fn disk_traffic(text: &str) -> (u64, u64) {
    let sum = |name: &str| {
        text.split_whitespace()
            .filter_map(|word| {
                word.strip_prefix(name)?
                    .strip_prefix('=')?
                    .parse::<u64>()
                    .ok()
            })
            .fold(0, u64::saturating_add)
    };
    (sum("rbytes"), sum("wbytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_the_kernels_files() {
        assert_eq!(field("usage_usec 12\nuser_usec 7\n", "usage_usec"), 12);
        assert_eq!(field("usage_usec_x 12\n", "usage_usec"), 0);
        let text = "Inter-| Receive | Transmit\n face |bytes\n    lo: 9 9 9 9 9 9 9 9 9 9\n\
            eth0:  100 1 0 0 0 0 0 0 200 2\n";
        assert_eq!(traffic(text), (100, 200));
        let text = "254:0 rbytes=10 wbytes=20 rios=1\n254:16 rbytes=5 wbytes=1 rios=1\n";
        assert_eq!(disk_traffic(text), (15, 21));
    }
}
