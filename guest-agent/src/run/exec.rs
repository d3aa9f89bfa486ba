//! Finding and executing the command, with docker's statuses for what goes wrong.

use std::{
    ffi::{CString, NulError},
    os::unix::fs::PermissionsExt,
};

use nix::{errno::Errno, unistd::execve};

use super::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, process::DEFAULT_PATH};

/// A command that could not be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecError {
    /// 126 or 127.
    pub status: i32,
    /// What is wrong with which file.
    pub message: String,
}

impl ExecError {
    fn new(command: &str, error: Errno) -> Self {
        let (status, text) = match error {
            Errno::ENOENT => (EXIT_NOT_FOUND, "no such file or directory".to_owned()),
            Errno::ENOTDIR => (EXIT_NOT_FOUND, "not a directory".to_owned()),
            Errno::EACCES | Errno::EPERM => (EXIT_NOT_EXECUTABLE, "permission denied".to_owned()),
            Errno::EISDIR => (EXIT_NOT_EXECUTABLE, "is a directory".to_owned()),
            Errno::ENOEXEC => (
                EXIT_NOT_EXECUTABLE,
                "exec format error; is the image of this machine's architecture?".to_owned(),
            ),
            other => (EXIT_NOT_EXECUTABLE, other.desc().to_lowercase()),
        };
        Self {
            status,
            message: format!("exec {command:?}: {text}"),
        }
    }
}

/// Where a command may be: itself when it holds a slash, else in the directories of `path` in
/// order; an empty directory means the current one.
pub fn candidates(command: &str, path: &str) -> Vec<String> {
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    path.split(':')
        .map(|dir| if dir.is_empty() { "." } else { dir })
        .map(|dir| format!("{}/{command}", dir.trim_end_matches('/')))
        .collect()
}

/// Replaces this process by `args`. Only returns when that fails.
pub fn execute(args: &[String], env: &[String]) -> ExecError {
    let Some(command) = args.first().filter(|command| !command.is_empty()) else {
        let message = "exec \"\": no such file or directory".to_owned();
        return ExecError {
            status: EXIT_NOT_FOUND,
            message,
        };
    };
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let (Ok(argv), Ok(envp)) = (c_strings(args), c_strings(env)) else {
        return ExecError::new(command, Errno::EINVAL);
    };
    let mut reason = None;
    for file in candidates(command, path) {
        let Ok(c_file) = CString::new(file.as_str()) else {
            continue;
        };
        let Err(error) = execve(&c_file, &argv, &envp);
        match error {
            // Go on as execvp does, but remember that something was there.
            Errno::EACCES if is_dir(&file) => reason = reason.or(Some(Errno::EISDIR)),
            Errno::EACCES => reason = Some(Errno::EACCES),
            // A script or program may be there while its interpreter is not.
            Errno::ENOENT if is_program(&file) => return missing_interpreter(&file),
            Errno::ENOENT | Errno::ENOTDIR => {}
            other => return ExecError::new(&file, other),
        }
    }
    match reason {
        Some(error) => ExecError::new(command, error),
        None if command.contains('/') => ExecError::new(command, Errno::ENOENT),
        None => ExecError {
            status: EXIT_NOT_FOUND,
            message: format!("exec {command:?}: executable file not found in $PATH"),
        },
    }
}

fn missing_interpreter(file: &str) -> ExecError {
    let message = format!("exec {file:?}: its interpreter or dynamic loader is not in the image");
    ExecError {
        status: EXIT_NOT_FOUND,
        message,
    }
}

fn is_dir(file: &str) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.is_dir())
}

fn is_program(file: &str) -> bool {
    std::fs::metadata(file)
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn c_strings(words: &[String]) -> Result<Vec<CString>, NulError> {
    words
        .iter()
        .map(|word| CString::new(word.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_keeps_path_out_of_it() {
        assert_eq!(candidates("./x", "/bin"), ["./x"]);
        assert_eq!(
            candidates("x", "/bin:/usr/bin/:"),
            ["/bin/x", "/usr/bin/x", "./x"]
        );
    }

    fn fail(args: &[&str], path: &str) -> ExecError {
        let args: Vec<_> = args.iter().map(|&arg| arg.to_owned()).collect();
        execute(&args, &[format!("PATH={path}")])
    }

    #[test]
    fn failures_have_dockers_statuses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        let file = |name: &str, mode: u32, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            file.to_str().unwrap().to_owned()
        };
        let plain = file("plain", 0o644, "text");
        let noise = file("noise", 0o755, "\x7fnothing");
        let orphan = file("orphan", 0o755, "#!/no/such/interpreter\n");

        assert_eq!(fail(&["nowhere"], path).status, 127);
        assert!(
            fail(&["nowhere"], path)
                .message
                .contains("not found in $PATH")
        );
        assert_eq!(fail(&["/no/such"], path).status, 127);
        assert_eq!(fail(&[""], path).status, 127);
        assert_eq!(fail(&[&plain], path).status, 126);
        assert_eq!(fail(&["plain"], path).status, 126);
        assert_eq!(fail(&[path], path).status, 126);
        assert!(fail(&[path], path).message.contains("is a directory"));
        assert_eq!(fail(&[&noise], path).status, 126);
        let error = fail(&[&orphan], path);
        assert!(
            error.status == 127 && error.message.contains("interpreter"),
            "{error:?}"
        );
    }
}
