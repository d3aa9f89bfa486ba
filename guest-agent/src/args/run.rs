//! The arguments of `run`: docker's words, where there are any. Options end with the image's name.

use vdkr_core::channel::message::Network;

use super::{DEFAULT_STATE, from};
use crate::command::run::RunOptions;

use super::{Word, Words};

/// Reads what stands behind `run`.
pub(super) fn parse<'a>(args: impl Iterator<Item = &'a str>) -> Result<RunOptions, String> {
    let mut options = RunOptions {
        state: DEFAULT_STATE.into(),
        ..RunOptions::default()
    };
    let mut words = Words(args, "run", None);
    while let Some(word) = words.next()? {
        let name = match word {
            Word::Option(name) => name,
            Word::Plain(name @ ("-d" | "-e" | "-i" | "-u" | "-w")) => name,
            Word::Plain(word) if word.starts_with('-') && word.len() > 1 => {
                return Err(words.unknown(word));
            }
            Word::Plain(image) => {
                image.clone_into(&mut options.image);
                options.args = words.0.map(str::to_owned).collect();
                return Ok(options);
            }
        };
        match name {
            _ if from(&mut options.from, name, &mut words)? => {}
            _ if options.engine.take(name, &mut words)? => {}
            "-d" | "--detach" => options.detach = true,
            "-i" | "--interactive" => options.interactive = true,
            "--rm" => options.rm = true,
            "-e" | "--env" => options.env.push(words.value(name)?.to_owned()),
            // An empty one is docker's way to have none.
            "--entrypoint" => {
                let program = words.attached().or_else(|| words.0.next());
                let program = program.ok_or("option --entrypoint needs a value")?;
                options.entrypoint = Some(program.to_owned());
            }
            "--name" => options.name = Some(words.value(name)?.to_owned()),
            "-u" | "--user" => options.user = Some(words.value(name)?.to_owned()),
            "-w" | "--workdir" => options.workdir = Some(words.value(name)?.to_owned()),
            "--network" | "--net" => {
                options.network = Some(match words.value(name)? {
                    "host" => Network::Host,
                    "none" => Network::None,
                    other => {
                        return Err(format!(
                            "network {other:?}: a container has this machine's (host) or none"
                        ));
                    }
                });
            }
            "--pull" => match words.value(name)? {
                "missing" => options.no_pull = false,
                "never" => options.no_pull = true,
                other => return Err(format!("--pull {other:?} is neither missing nor never")),
            },
            "--state" | "--state-dir" => options.state = words.value(name)?.into(),
            other => return Err(words.unknown(other)),
        }
    }
    Err("run needs the name of an image; try vdkr-agent --help".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Result<RunOptions, String> {
        parse(words.split(' '))
    }

    #[test]
    fn options_end_with_the_image() {
        let options = read(
            "--rm -e A=1 --env=B=2 -u 7 -w /x --network none --name n --entrypoint= --pull never \
             --registry h:1 --authfile /l --state-dir /s -i img -d --rm -- x",
        )
        .unwrap();
        assert_eq!(options.image, "img");
        assert_eq!(options.args, ["-d", "--rm", "--", "x"]);
        assert_eq!(options.env, ["A=1", "B=2"]);
        assert_eq!(options.entrypoint.as_deref(), Some(""));
        assert_eq!(options.network, Some(Network::None));
        assert_eq!(options.from.registry.as_deref(), Some("h:1"));
        assert_eq!(options.from.authfile, Some("/l".into()));
        assert!(options.rm && options.interactive && options.no_pull && !options.detach);
    }

    #[test]
    fn mistakes_are_named() {
        for words in [
            "--rm",
            "-x img",
            "--rm=1 img",
            "--what img",
            "-e",
            "--network bridge img",
            "--pull always img",
            "-p 80:80 img",
        ] {
            assert!(read(words).is_err(), "{words}");
        }
    }
}
