//! Credential helpers: the programs `docker-credential-<name>`, spoken to over their standard
//! input and output. No secret is in their arguments.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use vdkr_core::credentials::{
    Credential, helper_server, helper_store_request, parse_helper_answer, parse_helper_list,
};
use vdkr_core::reference::Host;

/// Most that is read of a helper's answer, in bytes.
const MAX_ANSWER: u64 = 1024 * 1024;
/// A helper may ask its user for a passphrase, but not for ever.
const PATIENCE: Duration = Duration::from_mins(2);

/// What the helper knows about a registry; anonymous when it knows nothing.
pub fn get(name: &str, host: &Host) -> Result<Credential> {
    let answer = call(name, "get", helper_server(host).as_bytes())?;
    parse_helper_answer(&answer.output, answer.succeeded).with_context(|| program(name))
}

/// Gives the helper a login to keep.
pub fn store(name: &str, host: &Host, credential: &Credential) -> Result<()> {
    let request = helper_store_request(host, credential).with_context(|| {
        let kind = credential.kind();
        format!("{} cannot keep a {kind}", program(name))
    })?;
    let answer = call(name, "store", request.expose().as_bytes())?;
    if !answer.succeeded {
        // Whatever it says may repeat the request.
        bail!("{} could not keep the login", program(name));
    }
    Ok(())
}

/// Lets the helper forget a registry, as it is named to it; not knowing it is success.
pub fn erase(name: &str, server: &str) -> Result<()> {
    let answer = call(name, "erase", server.as_bytes())?;
    if answer.succeeded {
        return Ok(());
    }
    match parse_helper_answer(&answer.output, false) {
        Ok(_) => Ok(()),
        Err(error) => Err(anyhow!(error).context(program(name))),
    }
}

/// The registries that the helper knows.
pub fn list(name: &str) -> Result<Vec<String>> {
    let answer = call(name, "list", b"")?;
    if !answer.succeeded {
        bail!("{} cannot list what it keeps", program(name));
    }
    parse_helper_list(&answer.output).with_context(|| program(name))
}

fn program(name: &str) -> String {
    format!("docker-credential-{name}")
}

struct Answer {
    output: Vec<u8>,
    succeeded: bool,
}

fn call(name: &str, verb: &str, input: &[u8]) -> Result<Answer> {
    let program = program(name);
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}; is it installed and in PATH?"))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let deadline = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A helper that ends without reading gave its answer all the same.
            let _ = stdin.map(|mut stdin| stdin.write_all(input));
        });
        let output = scope.spawn(move || {
            let mut output = Vec::new();
            let read = stdout.map(|stdout| stdout.take(MAX_ANSWER).read_to_end(&mut output));
            read.transpose().map(|_| output)
        });
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > deadline {
                // Its end closes the pipes, which ends both threads.
                child.kill()?;
                child.wait()?;
                bail!("{program} did not answer within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let output = output
            .join()
            .map_err(|_| anyhow!("{program}: its answer could not be read"))??;
        Ok(Answer {
            output,
            succeeded: status.success(),
        })
    })
}
