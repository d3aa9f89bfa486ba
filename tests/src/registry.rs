//! Our registry, run as users run it.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Ran, free_port, program, run};

/// A started registry with a storage of its own; stopped when dropped.
#[derive(Debug)]
pub struct Registry {
    storage: PathBuf,
    port: u16,
    variables: Vec<(String, String)>,
    // Keeps the directory for as long as the registry uses it.
    own: Option<TempDir>,
}

/// `container-registry` with none of the caller's configuration.
pub fn container_registry() -> Command {
    let mut command = Command::new(program("container-registry"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CONTAINER_REGISTRY_")
            || [
                "DEPLOY_DIR_IMAGE",
                "DEPLOY_DIR_IMAGES",
                "BUILDDIR",
                "IMAGE_VERSION",
                "TARGET_ARCH",
                // Where logins may be.
                "DOCKER_CONFIG",
                "REGISTRY_AUTH_FILE",
                "XDG_CONFIG_HOME",
                "XDG_RUNTIME_DIR",
            ]
            .contains(&&*name_text)
        {
            command.env_remove(name);
        }
    }
    command
}

impl Registry {
    /// Starts one on a free port with an empty storage.
    #[track_caller]
    pub fn start() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let storage = dir.path().join("storage");
        let mut registry = Self::start_on(&storage, free_port());
        registry.own = Some(dir);
        registry
    }

    /// Starts one on an existing storage.
    #[track_caller]
    pub fn start_on(storage: &Path, port: u16) -> Self {
        Self::start_with(storage, port, &[])
    }

    /// Starts one on a storage with variables of its own, as `CONTAINER_REGISTRY_SECURE`; every
    /// command for it gets them too.
    #[track_caller]
    pub fn start_with(storage: &Path, port: u16, variables: &[(&str, &str)]) -> Self {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let registry = Self {
            storage: storage.to_owned(),
            port,
            variables: variables.iter().map(own).collect(),
            own: None,
        };
        run(registry.command().arg("start")).expect(0);
        registry
    }

    /// `container-registry` set up for this registry.
    pub fn command(&self) -> Command {
        let mut command = container_registry();
        command
            .env("CONTAINER_REGISTRY_URL", self.host())
            .env("CONTAINER_REGISTRY_STORAGE", &self.storage)
            .envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command against this registry.
    #[track_caller]
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Ran {
        run(self.command().args(args))
    }

    /// `localhost:PORT`.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// `http://localhost:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// Port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Storage directory.
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// Stops it, and says so when that fails.
    #[track_caller]
    pub fn stop(&self) {
        self.run(["stop"]).expect(0);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.command().arg("stop").output();
    }
}
