//! The VM image: kernel and initramfs in a directory of the cache, linked as `target/vm/<arch>`.
//!
//! The kernel is Debian's cloud kernel, unless one is given by path; `images/qemu/modules.list`
//! names the modules that the initramfs brings.

mod kernel;
mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::apt::{self, Apt, Deb};
use crate::cache::{self, Key, file_sha256, files_below};
use crate::newc::Archive;
use crate::run::megabytes;
use crate::workspace::{Arch, Workspace};

/// Where the kernel comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Debian's package, the known one or the newest that the archive has.
    Debian {
        /// Ask the archive again.
        newest: bool,
    },
    /// A kernel file without modules: all that the VM needs is built in.
    File(PathBuf),
}

/// Makes the image for one architecture around an agent and returns the link to it.
pub(crate) fn build(
    workspace: &Workspace,
    arch: Arch,
    agent: &Path,
    source: &Source,
    baked: Option<&Path>,
) -> Result<PathBuf> {
    let kernel = match source {
        Source::Debian { newest } => debian(workspace, arch, *newest)?,
        Source::File(file) => from_file(workspace, arch, file)?,
    };
    let baked = baked.map_or_else(|| Ok(Vec::new()), read_baked)?;
    let agent_sha256 = file_sha256(agent)?;
    let key = Key::new("vm", 2)
        .with("kernel", kernel.as_os_str().as_encoded_bytes())
        .with("agent", &agent_sha256);
    let key = match baked.is_empty() {
        true => key,
        false => key.with("beside", BAKED),
    };
    let key = baked
        .iter()
        .fold(key, |key, (name, mode, bytes)| {
            key.with("baked", format!("{mode:o} {name}"))
                .with("", bytes)
        })
        .finish();
    let entry = cache::entry(workspace, &format!("vm/{}", arch.name()), &key, |place| {
        eprintln!("packing the {} image", arch.name());
        for file in ["kernel", "bzImage"] {
            if kernel.join(file).is_file() {
                fs::hard_link(kernel.join(file), place.join(file))
                    .or_else(|_| fs::copy(kernel.join(file), place.join(file)).map(drop))
                    .with_context(|| format!("cannot copy {file}"))?;
            }
        }
        write_baked(&place.join(BAKED), &baked)?;
        let loaded = load_list(&kernel, "load.list")?;
        let later = load_list(&kernel, "later.list")?;
        fs::write(
            place.join("initramfs"),
            initramfs(agent, &kernel, &loaded, &later, &baked)?,
        )?;
        let facts: Value = serde_json::from_slice(&fs::read(kernel.join("kernel.json"))?)?;
        let description = json!({
            "arch": arch.name(),
            "kernel_version": facts["version"],
            "kernel_format": facts["format"],
            "machines": machines(arch, &facts),
            // `modules.list` has what disks need that come while the machine runs.
            "hot_disks": facts["packaged"],
            "agent_sha256": agent_sha256,
            "modules": loaded,
        });
        fs::write(
            place.join("vm.json"),
            serde_json::to_vec_pretty(&description)?,
        )?;
        Ok(())
    })?;
    let image = cache::link(workspace, &format!("vm/{}", arch.name()), &entry)?;
    let size = fs::metadata(image.join("initramfs"))?.len();
    eprintln!(
        "image {}: {} (initramfs {})",
        arch.name(),
        image.display(),
        megabytes(size)
    );
    Ok(image)
}

/// Debian's kernel as [`from_package`] unpacks it, for others that boot it.
pub(crate) fn kernel(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    debian(workspace, arch, false)
}

fn debian(workspace: &Workspace, arch: Arch, newest: bool) -> Result<PathBuf> {
    let apt = Apt::open(workspace)?;
    let meta = format!("linux-image-cloud-{}", arch.debian());
    let deb = apt.fetch_behind(&meta, "linux-image-", arch, newest)?;
    from_package(workspace, arch, &deb)
}

/// The QEMU machine types that the kernel boots on, the fastest first. microvm describes its
/// devices by ACPI only, which kernels from elsewhere seldom have tried.
fn machines(arch: Arch, facts: &Value) -> &'static [&'static str] {
    match arch {
        Arch::Aarch64 => &["virt"],
        Arch::X86_64 if facts["format"] == "vmlinux" && facts["packaged"] == true => {
            &["microvm", "q35"]
        }
        Arch::X86_64 => &["q35"],
    }
}

/// Unpacks a kernel package: `kernel`, `bzImage` (x86), `modules/`, `load.list`, `later.list`,
/// `kernel.json`.
fn from_package(workspace: &Workspace, arch: Arch, deb: &Deb) -> Result<PathBuf> {
    let list = workspace.root.join("images/qemu/modules.list");
    let wanted =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let key = Key::new("kernel", 3)
        .with("deb", &deb.sha256)
        .with("modules", &wanted)
        .finish();
    cache::entry(
        workspace,
        &format!("kernel/{}", arch.name()),
        &key,
        |place| {
            eprintln!("unpacking {}", deb.name);
            let work = place.join("unpacked");
            fs::create_dir(&work)?;
            apt::unpack(&deb.file, &work)?;
            let version = deb.name.trim_start_matches("linux-image-");
            let file = fs::read(work.join("boot").join(format!("vmlinuz-{version}")))
                .with_context(|| format!("{} has no kernel file", deb.name))?;
            write_kernel(place, arch, &file, Some(version))?;
            let tree = ["lib/modules", "usr/lib/modules"]
                .map(|dir| work.join(dir).join(version))
                .into_iter()
                .find(|dir| dir.is_dir())
                .with_context(|| format!("{} has no modules", deb.name))?;
            fs::create_dir(place.join("modules"))?;
            let write = |module: &modules::Module| {
                fs::write(place.join("modules").join(&module.file), &module.content)
            };
            let modules = modules::load_order(&tree, &wanted)?;
            let mut names = String::new();
            for module in &modules.first {
                write(module)?;
                names += &module.file;
                names.push('\n');
            }
            fs::write(place.join("load.list"), names)?;
            let mut names = String::new();
            for (name, files) in &modules.later {
                names += name;
                for module in files {
                    write(module)?;
                    names.push(' ');
                    names += &module.file;
                }
                names.push('\n');
            }
            fs::write(place.join("later.list"), names)?;
            cache::remove(&work)
        },
    )
}

/// The same directory from a kernel file alone.
fn from_file(workspace: &Workspace, arch: Arch, file: &Path) -> Result<PathBuf> {
    let bytes =
        fs::read(file).with_context(|| format!("cannot read the kernel {}", file.display()))?;
    let key = Key::new("kernel-file", 1).with("kernel", &bytes).finish();
    cache::entry(
        workspace,
        &format!("kernel/{}", arch.name()),
        &key,
        |place| {
            write_kernel(place, arch, &bytes, None)
                .with_context(|| format!("cannot use the kernel {}", file.display()))
        },
    )
}

fn write_kernel(place: &Path, arch: Arch, file: &[u8], version: Option<&str>) -> Result<()> {
    let kernel = kernel::open(arch, file)?;
    fs::write(place.join("kernel"), &kernel.content)?;
    if arch == Arch::X86_64 && kernel.format == "vmlinux" && !file.starts_with(b"\x7fELF") {
        fs::write(place.join("bzImage"), file)?;
    }
    let facts = json!({
        "version": version.map(str::to_owned).or(kernel.release),
        "format": kernel.format,
        "packaged": version.is_some(),
    });
    fs::write(place.join("kernel.json"), serde_json::to_vec(&facts)?)?;
    Ok(())
}

fn load_list(kernel: &Path, list: &str) -> Result<Vec<String>> {
    match fs::read_to_string(kernel.join(list)) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read the kernel's {list}")),
    }
}

/// The first root file system: the agent as `/init`, two devices, and the modules in their order.
fn initramfs(
    agent: &Path,
    kernel: &Path,
    loaded: &[String],
    later: &[String],
    baked: &[BakedFile],
) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.device("dev/console", 0o600, 5, 1);
    archive.device("dev/null", 0o666, 1, 3);
    for dir in ["proc", "sys", "run", "tmp", "etc", "var"] {
        archive.directory(dir);
    }
    archive.file("init", 0o755, &fs::read(agent)?);
    let lists = [("load.list", loaded), ("later.list", later)];
    if lists.iter().any(|(_, lines)| !lines.is_empty()) {
        archive.directory("modules");
    }
    for (name, lines) in lists.into_iter().filter(|(_, lines)| !lines.is_empty()) {
        let text = lines.join("\n") + "\n";
        archive.file(&format!("modules/{name}"), 0o644, text.as_bytes());
    }
    let mut packed = BTreeSet::new();
    // A line of the second list begins with a name that is no file's.
    let later = later.iter().flat_map(|line| line.split(' ').skip(1));
    for file in loaded.iter().map(String::as_str).chain(later) {
        if packed.insert(file) {
            archive.file(
                &format!("modules/{file}"),
                0o644,
                &fs::read(kernel.join("modules").join(file))?,
            );
        }
    }
    let mut made: BTreeSet<String> = ["etc".to_owned()].into();
    for (name, mode, bytes) in baked {
        let parents: Vec<_> = Path::new(name).ancestors().skip(1).collect();
        for parent in parents.into_iter().rev() {
            let parent = parent.to_string_lossy().into_owned();
            if !parent.is_empty() && made.insert(parent.clone()) {
                archive.directory(&parent);
            }
        }
        archive.file(name, *mode, bytes);
    }
    Ok(archive.finish())
}

/// Where `vdkr` finds what the image brings beside the agent: it pulls from there for the machine.
const BAKED: &str = "baked";

/// Writes what the image brings beside `vm.json`. Logins are for their owner alone.
fn write_baked(place: &Path, baked: &[BakedFile]) -> Result<()> {
    for (name, mode, bytes) in baked {
        let path = place.join(name);
        let parent = path.parent().context("a file has a parent directory")?;
        fs::create_dir_all(parent)?;
        let mode = match name.starts_with("etc/") {
            true => *mode,
            false => mode & 0o600,
        };
        // Nobody else may read it while it is written.
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(mode & 0o600)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all(bytes)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// A file that the image brings beside the agent: its name below the root, mode and content.
type BakedFile = (String, u32, Vec<u8>);

/// The files of a directory that `container-registry bake` has written to.
fn read_baked(dir: &Path) -> Result<Vec<BakedFile>> {
    let mut files = Vec::new();
    for path in files_below(dir)? {
        let name = path.strip_prefix(dir).unwrap_or(&path);
        let name = name
            .to_str()
            .with_context(|| format!("{} is no UTF-8", path.display()))?;
        // The rest is the agent's and the modules' place.
        if ["etc/", "root/", "home/"]
            .iter()
            .any(|top| name.starts_with(top))
        {
            let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
            files.push((name.to_owned(), mode, fs::read(&path)?));
        }
    }
    if files.is_empty() {
        bail!(
            "{} holds nothing to bake; fill it with: container-registry bake --rootfs {} --profile vdkr",
            dir.display(),
            dir.display()
        );
    }
    Ok(files)
}
