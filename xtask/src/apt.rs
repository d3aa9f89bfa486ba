//! Debian packages of any architecture without root: an apt of its own in the cache, with the
//! host's Debian sources, proxies and keyrings, that downloads but never installs.

mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Key, file_sha256};
use crate::run::{capture_text, need_program, run};
use crate::workspace::{Arch, Workspace};

const LISTS_ARE_FRESH: Duration = Duration::from_hours(1);

/// The private apt.
pub(crate) struct Apt {
    place: PathBuf,
    /// The Debian release that packages come from.
    pub(crate) suite: String,
    _lock: fs::File,
}

/// One downloaded package.
#[derive(Clone, Debug)]
pub(crate) struct Deb {
    /// The name, which for a kernel holds its version.
    pub(crate) name: String,
    /// The file.
    pub(crate) file: PathBuf,
    /// Its SHA-256 in hex, checked by apt against the signed package list.
    pub(crate) sha256: String,
}

impl Apt {
    /// Sets the private apt up for both architectures; package lists are fetched when first needed.
    pub(crate) fn open(workspace: &Workspace) -> Result<Self> {
        let (suite, sources) = sources::of_host();
        Self::open_with(workspace, suite, &sources, &acquire_settings()?)
    }

    /// The same for another suite of Debian, from the host's mirror. What is taken from there is for
    /// tests to compare with: from a mirror that lags behind, an older signed list will do.
    pub(crate) fn open_suite(workspace: &Workspace, suite: &str) -> Result<Self> {
        let settings = acquire_settings()? + "Acquire::Check-Valid-Until \"false\";\n";
        let sources = sources::of_suite(suite);
        Self::open_with(workspace, suite.to_owned(), &sources, &settings)
    }

    fn open_with(
        workspace: &Workspace,
        suite: String,
        sources: &str,
        settings: &str,
    ) -> Result<Self> {
        let key = Key::new("apt", 1)
            .with("sources", sources)
            .with("settings", settings)
            .finish();
        let place = workspace.cache.join("apt").join(key);
        for dir in [
            "state/lists/partial",
            "cache/archives/partial",
            "parts",
            "debs",
        ] {
            fs::create_dir_all(place.join(dir))
                .with_context(|| format!("cannot create {}", place.join(dir).display()))?;
        }
        let lock = cache::lock(&place.join("lock"))?;
        fs::write(place.join("status"), "")?;
        fs::write(place.join("debian.sources"), sources)?;
        fs::write(place.join("acquire.conf"), settings)?;
        let dir = place.to_str().context("the cache's path is not UTF-8")?;
        let own = format!(
            "Dir::State \"{dir}/state\";\n\
             Dir::State::status \"{dir}/status\";\n\
             Dir::Cache \"{dir}/cache\";\n\
             Dir::Etc::sourcelist \"{dir}/debian.sources\";\n\
             Dir::Etc::sourceparts \"{dir}/parts\";\n\
             Dir::Etc::main \"{dir}/none\";\n\
             Dir::Etc::parts \"{dir}/parts\";\n\
             Dir::Etc::preferences \"{dir}/none\";\n\
             Dir::Etc::preferencesparts \"{dir}/parts\";\n\
             APT::Architecture \"{}\";\n\
             APT::Architectures {{ \"amd64\"; \"arm64\"; }};\n\
             APT::Sandbox::User \"\";\n\
             Acquire::Languages {{ \"none\"; }};\n\
             {settings}\n",
            Arch::HOST.debian()
        );
        fs::write(place.join("apt.conf"), own)?;
        Ok(Self {
            place,
            suite,
            _lock: lock,
        })
    }

    /// The package's file, downloaded once; `newest` asks the archive again.
    pub(crate) fn fetch(&self, name: &str, arch: Arch, newest: bool) -> Result<Deb> {
        let pointer = self.place.join(format!("{name}_{}.file", arch.debian()));
        if !newest && let Some(deb) = known(&pointer) {
            return Ok(deb);
        }
        // Lists may be missing, or older than what the archive still has.
        let deb = if let Ok(deb) = self.download(name, arch) {
            deb
        } else {
            self.update()?;
            self.download(name, arch)?
        };
        fs::write(
            &pointer,
            format!("{}\n{}\n{}\n", deb.name, deb.file.display(), deb.sha256),
        )?;
        Ok(deb)
    }

    /// The versioned package that a meta-package such as `linux-image-cloud-amd64` stands for.
    pub(crate) fn fetch_behind(
        &self,
        meta: &str,
        prefix: &str,
        arch: Arch,
        newest: bool,
    ) -> Result<Deb> {
        let pointer = self.place.join(format!("{meta}_{}.file", arch.debian()));
        if !newest && let Some(deb) = known(&pointer) {
            return Ok(deb);
        }
        self.update()?;
        let record = self.show(meta, arch)?;
        let name = field(&record, "Depends")
            .into_iter()
            .flat_map(|depends| depends.split([',', '|']))
            .filter_map(|one| one.split_whitespace().next())
            .find(|one| one.starts_with(prefix))
            .with_context(|| format!("{meta} depends on no {prefix}… package"))?
            .to_owned();
        let deb = self.fetch(&name, arch, true)?;
        fs::copy(
            self.place.join(format!("{name}_{}.file", arch.debian())),
            pointer,
        )?;
        Ok(deb)
    }

    /// The source list in deb822 form, for mmdebstrap.
    pub(crate) fn sources_file(&self) -> PathBuf {
        self.place.join("debian.sources")
    }

    /// The host's settings for downloads (proxies and such), for mmdebstrap.
    pub(crate) fn settings_file(&self) -> PathBuf {
        self.place.join("acquire.conf")
    }

    /// Fetches the package lists unless that was done within the last hour.
    fn update(&self) -> Result<()> {
        let stamp = self.place.join("updated");
        let age = fs::metadata(&stamp)
            .ok()
            .and_then(|meta| meta.modified().ok()?.elapsed().ok());
        if age.is_some_and(|age| age < LISTS_ARE_FRESH) {
            return Ok(());
        }
        eprintln!("fetching Debian's package lists ({})", self.suite);
        run(self.command("apt-get")?.args(["-qq", "update"])).context(
            "cannot fetch Debian's package lists; check the network and the apt sources of this host",
        )?;
        fs::write(&stamp, "").with_context(|| format!("cannot write {}", stamp.display()))
    }

    fn show(&self, name: &str, arch: Arch) -> Result<String> {
        capture_text(
            self.command("apt-cache")?
                .args(["show", "--no-all-versions"])
                .arg(format!("{name}:{}", arch.debian())),
        )
        .with_context(|| {
            format!(
                "Debian {} has no package {name} for {}",
                self.suite,
                arch.debian()
            )
        })
    }

    fn download(&self, name: &str, arch: Arch) -> Result<Deb> {
        let record = self.show(name, arch)?;
        let get = |wanted: &str| {
            field(&record, wanted).with_context(|| format!("{name} has no field {wanted}"))
        };
        let (version, sha256) = (get("Version")?, get("SHA256")?);
        let dir = self.place.join("debs");
        let file = dir.join(get("Filename")?.rsplit('/').next().unwrap_or_default());
        if !file.is_file() || file_sha256(&file)? != sha256 {
            eprintln!("downloading {name} {version} ({})", arch.debian());
            let work = dir.join("partial");
            cache::remove(&work)?;
            fs::create_dir(&work)?;
            run(self
                .command("apt-get")?
                .args(["-qq", "download"])
                .arg(format!("{name}:{}={version}", arch.debian()))
                .current_dir(&work))?;
            let fetched = fs::read_dir(&work)?
                .flatten()
                .map(|entry| entry.path())
                .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
                .with_context(|| format!("apt-get downloaded no file for {name}"))?;
            if file_sha256(&fetched)? != sha256 {
                bail!("{name} {version} does not match the checksum of the package list");
            }
            fs::rename(&fetched, &file)?;
        }
        Ok(Deb {
            name: name.to_owned(),
            file,
            sha256: sha256.to_owned(),
        })
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(need_program(program, "apt")?);
        command
            .env("APT_CONFIG", self.place.join("apt.conf"))
            .env("LC_ALL", "C.UTF-8");
        Ok(command)
    }
}

/// For fakechroot, under which the loader looks for systemd's own library where this system has its own:
/// it is found in `/lib/systemd`, where it is not, by links of every version's name.
const LINK_LIBRARIES: &str = r#"test "$MMDEBSTRAP_MODE" != fakechroot || {
    cd "$1/usr/lib" && mkdir -p systemd && for place in *-linux-gnu; do
        for version in $(seq 247 299); do
            ln -s "../$place/systemd/libsystemd-shared-$version.so" systemd/
        done
    done
}"#;
/// Afterwards nothing of that is left.
const UNLINK_LIBRARIES: &str =
    r#"find "$1/usr/lib/systemd" -name 'libsystemd-shared-*.so' -type l -delete"#;

/// What becomes of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// They are set up as on a system of their own, for which their programs run.
    Configured,
    /// They are unpacked, which goes for any architecture.
    Unpacked,
}

/// Writes a minimal Debian of the suite, with these packages more, into an archive.
pub(crate) fn bootstrap(
    apt: &Apt,
    arch: Arch,
    install: Install,
    packages: &[&str],
    archive: &Path,
) -> Result<()> {
    let tool = need_program("mmdebstrap", "mmdebstrap")?;
    let mut attempt = Ok(());
    let (variant, packages) = match install {
        Install::Configured => ("minbase", packages.to_vec()),
        Install::Unpacked => ("extract", [&["?essential"], packages].concat()),
    };
    // As root or with subordinate user ids the first mode works, else fakechroot may.
    for mode in ["auto", "fakechroot"] {
        let mut command = Command::new(&tool);
        command
            .args(["--quiet", "--format=tar"])
            .arg(format!("--variant={variant}"))
            .arg(format!("--architectures={}", arch.debian()))
            .arg(format!("--mode={mode}"))
            .arg(format!("--aptopt={}", apt.settings_file().display()))
            .args(
                ["doc", "man", "locale", "info"]
                    .map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")),
            );
        if install == Install::Configured {
            command
                .arg(format!("--essential-hook={LINK_LIBRARIES}"))
                .arg(format!("--customize-hook={UNLINK_LIBRARIES}"));
        }
        // A pattern and a name do not go into one option.
        command.args(
            packages
                .iter()
                .map(|package| format!("--include={package}")),
        );
        attempt = run(command
            .arg(&apt.suite)
            .arg(archive)
            .arg(apt.sources_file())
            // A cache below another user's home is out of reach for apt's own user.
            .env("TMPDIR", std::env::temp_dir()));
        if attempt.is_ok() {
            break;
        }
    }
    attempt
}

/// Unpacks a package into a directory; nobody needs to be root for it.
pub(crate) fn unpack(deb: &Path, into: &Path) -> Result<()> {
    run(Command::new(need_program("dpkg-deb", "dpkg")?)
        .arg("--extract")
        .arg(deb)
        .arg(into))
}

/// The file that an earlier run resolved a name to, while it is still whole.
fn known(pointer: &Path) -> Option<Deb> {
    let text = fs::read_to_string(pointer).ok()?;
    let mut lines = text.lines();
    let name = lines.next()?.to_owned();
    let file = PathBuf::from(lines.next()?);
    let sha256 = lines.next()?.to_owned();
    file.is_file().then_some(Deb { name, file, sha256 })
}

fn field<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// The host's `Acquire` settings (proxies, time-outs, certificates), without what apt derives itself.
fn acquire_settings() -> Result<String> {
    let dump = capture_text(Command::new(need_program("apt-config", "apt")?).arg("dump"))?;
    let own = [
        "Acquire::IndexTargets",
        "Acquire::Changelogs",
        "Acquire::CompressionTypes",
        "Acquire::Languages",
    ];
    Ok(dump
        .lines()
        .filter(|line| {
            line.starts_with("Acquire::") && !own.iter().any(|name| line.starts_with(name))
        })
        .filter(|line| !line.ends_with(" \"\";"))
        .fold(String::new(), |text, line| text + line + "\n"))
}
