//! `top`: the processes of a container.

use std::{fs, path::Path};

use vdkr_core::{
    channel::message::{ContainerReply, Done, Failure, FailureCode, Reply},
    container::process_stat::ProcessStat,
};

use super::Agent;

/// Most processes that are listed.
const MAX_PROCESSES: usize = 4096;
/// Kernel ticks of a second, which Linux shows to programs whatever its own are.
const TICKS: u64 = 100;

/// Lists the processes of a container, as `ps -ef` does, with their numbers in the machine.
pub fn top(agent: &Agent, name: &str) -> Done {
    let entry = agent.book().find(name)?;
    let live = entry.live();
    let Some(live) = live else {
        let message = format!("container {} is not running", entry.name());
        return Err(Failure::new(FailureCode::Failed, message));
    };
    let pids = match live.container.cgroup() {
        Some(group) => pids(group),
        None => vec![live.pid()],
    };
    let titles = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
    Ok(Reply::Container(ContainerReply::Top {
        titles: titles.map(str::to_owned).into(),
        processes: pids.into_iter().filter_map(row).collect(),
    }))
}

/// Numbers of the processes in a group and the groups below it.
pub(super) fn pids(group: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![group.to_owned()];
    while let Some(group) = open.pop() {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        if found.len() > MAX_PROCESSES {
            break;
        }
        for below in fs::read_dir(&group).into_iter().flatten().flatten() {
            if below.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(below.path());
            }
        }
    }
    found.truncate(MAX_PROCESSES);
    found.sort_unstable();
    found
}

/// `None` when it has gone meanwhile.
fn row(pid: u32) -> Option<Vec<String>> {
    let dir = Path::new("/proc").join(pid.to_string());
    let stat = ProcessStat::parse(&fs::read_to_string(dir.join("stat")).ok()?)?;
    let status = fs::read_to_string(dir.join("status")).ok()?;
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().next())
        .unwrap_or("?");
    let line = fs::read(dir.join("cmdline")).unwrap_or_default();
    let words: Vec<_> = line
        .split(|byte| *byte == 0)
        .map(String::from_utf8_lossy)
        .collect();
    let shown = words.join(" ").trim_end().to_owned();
    let shown = if shown.is_empty() {
        format!("[{}]", stat.name)
    } else {
        shown
    };
    let seconds = (stat.user_ticks + stat.system_ticks) / TICKS;
    let up = crate::machine::uptime().as_secs();
    let age = up.saturating_sub(stat.start_ticks / TICKS);
    let share = (seconds * 100).checked_div(age).unwrap_or(0).min(999);
    let now = crate::container::record::now_ms() / 1000;
    let started = now.saturating_sub(age) % 86_400;
    let tty = match stat.tty {
        0 => "?".to_owned(),
        number => format!("pts/{}", (number & 0xff) | ((number >> 12) & 0xf_ff00)),
    };
    Some(vec![
        uid.to_owned(),
        pid.to_string(),
        stat.parent.to_string(),
        share.to_string(),
        format!("{:02}:{:02}", started / 3600, started / 60 % 60),
        tty,
        format!(
            "{:02}:{:02}:{:02}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
        shown,
    ])
}
