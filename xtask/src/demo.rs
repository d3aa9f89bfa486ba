//! The main job, shown step by step with real parts: registry, push, VM, pull, run.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, process};

use anyhow::{Context, Result, bail};

use crate::fixtures::Scope;
use crate::image::Source;
use crate::run::{cargo, run};
use crate::workspace::{Arch, Workspace};
use crate::{agent, fixtures, image};

/// The port that users know, taken when it is free.
const USUAL_PORT: u16 = 5000;

/// Builds what is missing, performs the main job, and stops all that it started: also after a
/// failure or Ctrl-C.
pub(crate) fn perform(workspace: &Workspace) -> Result<()> {
    let mut times = Times::default();
    let arch = Arch::HOST;
    times.step("build the host programs", || {
        run(cargo(workspace).args(["build", "--release", "--package=vdkr-host", "--bins"]))
    })?;
    let agent = times.step("build the agent", || agent::build(workspace, arch))?;
    times.step("build the VM image", || {
        image::build(
            workspace,
            arch,
            &agent,
            &Source::Debian { newest: false },
            None,
        )
    })?;
    let images = times.step("make an image to push", || {
        fixtures::build(workspace, Scope::Demo(arch))
    })?;

    let stage = Arc::new(Stage::set(workspace, &images.join("deploy/images"))?);
    stop_on_signal(&stage)?;
    let shown = show(&stage, &mut times);
    let stopped = times.step("stop everything", || stage.clear());
    shown?;
    stopped?;
    times.print();
    Ok(())
}

/// The steps that a user would type.
fn show(stage: &Stage, times: &mut Times) -> Result<()> {
    let host = format!("localhost:{}", stage.port);
    let registry = ["--registry".to_owned(), format!("{host}/yocto")];
    let registry: Vec<&str> = registry.iter().map(String::as_str).collect();
    times.step("start the registry", || stage.registry(&["start"], 0))?;
    times.step("push with a tag strategy", || {
        stage.registry(&["push", "--strategy", "timestamp latest"], 0)
    })?;
    times.step("list what it has", || stage.registry(&["list"], 0))?;
    times.step("boot the VM", || stage.vdkr(&["memres", "start"], 0))?;
    times.step("pull into the VM", || {
        stage.vdkr(&[&registry[..], &["pull", "container-base"]].concat(), 0)
    })?;
    times.step("list its images", || stage.vdkr(&["images"], 0))?;
    let hello = "echo \"hello from $(. /etc/os-release; echo $PRETTY_NAME) on $(uname -sm)\"; id";
    times.step("run a container", || {
        stage.vdkr(&["run", "--rm", "container-base", "sh", "-c", hello], 0)
    })?;
    times.step("see its exit status", || {
        stage.vdkr(&["run", "--rm", "container-base", "sh", "-c", "exit 7"], 7)
    })?;
    // So far the layers came by way of this computer. A board has none beside it that could help.
    times.step("pull in the VM itself", || {
        stage.vdkr(&["rmi", "container-base"], 0)?;
        let in_the_vm = [&registry[..], &["--pull-in", "guest"]].concat();
        let shown = stage.shown(
            "vdkr",
            &[&in_the_vm[..], &["pull", "container-base"]].concat(),
        )?;
        let stored = format!("10.0.2.2:{}/yocto/container-base:latest", stage.port);
        if shown.lines().last() != Some(&*stored) {
            bail!("the VM stored it under another name than {stored}");
        }
        stage.vdkr(&["run", "--rm", "--pull", "never", &stored, "true"], 0)
    })
}

/// Where the demo plays: a directory with the registry's storage and the VM's state.
struct Stage {
    place: PathBuf,
    deploy: PathBuf,
    programs: PathBuf,
    port: u16,
}

impl Stage {
    fn set(workspace: &Workspace, deploy: &Path) -> Result<Self> {
        // Short, for the names of sockets are limited to about 100 bytes.
        let place = std::env::temp_dir().join(format!("vdkr-demo-{}", process::id()));
        fs::create_dir(&place).with_context(|| format!("cannot create {}", place.display()))?;
        let port = free_port(USUAL_PORT)
            .or_else(|| free_port(0))
            .context("no free port")?;
        Ok(Self {
            place,
            deploy: deploy.to_path_buf(),
            programs: workspace.target.join("release"),
            port,
        })
    }

    fn registry(&self, arguments: &[&str], status: i32) -> Result<()> {
        self.perform("container-registry", arguments, status)
    }

    fn vdkr(&self, arguments: &[&str], status: i32) -> Result<()> {
        self.perform("vdkr", arguments, status)
    }

    /// Performs a command of which the output is looked at, too.
    fn shown(&self, program: &str, arguments: &[&str]) -> Result<String> {
        announce(program, arguments);
        let output = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        print!("{text}");
        if !output.status.success() {
            bail!("{program} ended with {}", output.status);
        }
        Ok(text)
    }

    fn perform(&self, program: &str, arguments: &[&str], wanted: i32) -> Result<()> {
        announce(program, arguments);
        let status = self
            .command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .status()
            .with_context(|| format!("cannot run {program}"))?;
        if status.code() != Some(wanted) {
            bail!("{program} ended with {status}, not with exit status {wanted}");
        }
        Ok(())
    }

    /// The program with the demo's own directories, and nothing of the user's configuration.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["CONTAINER_REGISTRY_", "VDKR_", "DEPLOY_DIR_"]
                .iter()
                .any(|ours| text.starts_with(ours))
            {
                command.env_remove(&name);
            }
        }
        command
            .env("CONTAINER_REGISTRY_URL", format!("localhost:{}", self.port))
            .env("CONTAINER_REGISTRY_STORAGE", self.place.join("registry"))
            .env("DEPLOY_DIR_IMAGES", &self.deploy)
            .env("VDKR_STATE_DIR", self.place.join("vm"))
            .env("VDKR_CONFIG_DIR", self.place.join("config"));
        command
    }

    /// Stops VM and registry and removes the directory; what was never started is no failure.
    fn clear(&self) -> Result<()> {
        let quietly = |program: &str, arguments: &[&str]| {
            let _ = self
                .command(program)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
        };
        quietly("vdkr", &["memres", "stop"]);
        quietly("container-registry", &["stop"]);
        match fs::remove_dir_all(&self.place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.place.display()))
            }
            _ => Ok(()),
        }
    }
}

/// Clears the stage when Ctrl-C, SIGTERM or SIGHUP asks this program to end.
fn stop_on_signal(stage: &Arc<Stage>) -> Result<()> {
    let stage = Arc::clone(stage);
    ctrlc::set_handler(move || {
        eprintln!("\nstopping");
        let _ = stage.clear();
        process::exit(130);
    })
    .context("cannot handle signals")
}

fn free_port(wanted: u16) -> Option<u16> {
    let listener = TcpListener::bind(("127.0.0.1", wanted)).ok()?;
    Some(listener.local_addr().ok()?.port())
}

/// Shows a command as a user would type it.
fn announce(program: &str, arguments: &[&str]) {
    let shown: Vec<String> = arguments.iter().map(|argument| quoted(argument)).collect();
    println!("$ {program} {}", shown.join(" "));
}

/// An argument as a user would type it in a shell.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// The steps so far and the time that each took.
#[derive(Default)]
struct Times(Vec<(&'static str, Duration)>);

impl Times {
    fn step<T>(&mut self, name: &'static str, perform: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("\n--- {name}");
        let start = Instant::now();
        let result = perform().with_context(|| format!("cannot {name}"));
        let time = start.elapsed();
        println!("    ({:.2} s)", time.as_secs_f32());
        self.0.push((name, time));
        result
    }

    fn print(&self) {
        println!("\nstep                          time");
        for (name, time) in &self.0 {
            println!("{name:<26} {:>6.2} s", time.as_secs_f32());
        }
        let total: Duration = self.0.iter().map(|(_, time)| *time).sum();
        println!("{:<26} {:>6.2} s", "all", total.as_secs_f32());
    }
}
