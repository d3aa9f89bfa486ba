//! What has become of a container whose streams have ended: it is over, or its engine starts it again.

use serde_json::Value;

use super::rows::{self, number, text};
use crate::channel::message::ContainerState;

/// Milliseconds that an engine at least lets pass between two rounds, by half.
const HALF_A_PAUSE: u64 = 50;

/// What has become of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has ended for good, with this status.
    Ended(i32),
    /// It has ended with this status, and its policy would have it start again.
    MayStart(i32),
    /// It starts again in a moment.
    Starting,
    /// It is still in the round whose streams have ended.
    Runs,
    /// It is, or was, in a later round.
    Again {
        /// Which one, as the engine counts.
        round: u64,
        /// Its log begins behind this time, in milliseconds since 1970.
        since_ms: u64,
        /// Whether it is in it now.
        runs: bool,
    },
}

/// The round that a container is in: how often its engine has started it again by itself.
pub fn round(said: &Value) -> u64 {
    number(said, "RestartCount")
}

/// Whether an engine starts a container again by itself.
pub fn has_policy(said: &Value) -> bool {
    let policy = said.pointer("/HostConfig/RestartPolicy/Name");
    !matches!(policy.and_then(Value::as_str), None | Some("" | "no"))
}

/// What `GET /containers/{id}/json` says of a container whose streams of round `seen` have ended.
pub fn outcome(said: &Value, seen: u64) -> Outcome {
    let row = rows::container(said);
    let round = round(said);
    let runs = row.state.is_live();
    match row.state {
        ContainerState::Restarting => Outcome::Starting,
        ContainerState::Running | ContainerState::Paused | ContainerState::Exited
            if round != seen =>
        {
            let started = row.started_ms.unwrap_or(0);
            let before = started.saturating_sub(HALF_A_PAUSE);
            // Between the lines of the round before and the first ones of this.
            let since_ms = match row.finished_ms {
                Some(finished) if finished < started => finished.midpoint(started),
                _ => before,
            };
            Outcome::Again {
                round,
                since_ms,
                runs,
            }
        }
        ContainerState::Running | ContainerState::Paused => Outcome::Runs,
        ContainerState::Exited if may_start(said, row.exit_code) => {
            Outcome::MayStart(row.exit_code)
        }
        _ => Outcome::Ended(row.exit_code),
    }
}

fn may_start(said: &Value, status: i32) -> bool {
    let Some(policy) = said.pointer("/HostConfig/RestartPolicy") else {
        return false;
    };
    match text(policy, "Name") {
        "always" | "unless-stopped" => true,
        "on-failure" => {
            let most = number(policy, "MaximumRetryCount");
            status != 0 && (most == 0 || round(said) < most)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(status: &str, round: u64, policy: &str, most: u64) -> Value {
        json!({
            "State": {"Status": status, "ExitCode": 3, "StartedAt": "2023-11-14T22:13:21Z",
                      "FinishedAt": "2023-11-14T22:13:20.8Z"},
            "RestartCount": round,
            "HostConfig": {"RestartPolicy": {"Name": policy, "MaximumRetryCount": most}},
        })
    }

    #[test]
    fn a_container_is_over_or_starts_again() {
        assert_eq!(outcome(&said("exited", 0, "no", 0), 0), Outcome::Ended(3));
        assert_eq!(outcome(&said("created", 0, "", 0), 0), Outcome::Ended(3));
        assert_eq!(outcome(&said("running", 0, "always", 0), 0), Outcome::Runs);
        let starting = said("restarting", 1, "always", 0);
        assert_eq!(outcome(&starting, 0), Outcome::Starting);
        let again = |runs| Outcome::Again {
            round: 1,
            since_ms: 1_700_000_000_900,
            runs,
        };
        assert_eq!(outcome(&said("running", 1, "always", 0), 0), again(true));
        // All of a round between two looks.
        assert_eq!(
            outcome(&said("exited", 1, "on-failure", 1), 0),
            again(false)
        );
        let may = Outcome::MayStart(3);
        for (policy, most, round, wanted) in [
            ("always", 0, 9, may),
            ("unless-stopped", 0, 9, may),
            ("on-failure", 0, 9, may),
            ("on-failure", 3, 2, may),
            ("on-failure", 3, 3, Outcome::Ended(3)),
        ] {
            let said = said("exited", round, policy, most);
            assert_eq!(outcome(&said, round), wanted, "{policy} {round}");
            assert!(has_policy(&said));
        }
        let mut fine = said("exited", 0, "on-failure", 0);
        fine["State"]["ExitCode"] = json!(0);
        assert_eq!(outcome(&fine, 0), Outcome::Ended(0));
        assert!(!has_policy(&said("exited", 0, "no", 0)) && !has_policy(&json!({})));
    }

    #[test]
    fn a_round_that_is_over_begins_in_the_log_at_its_own_start() {
        let mut over = said("exited", 1, "always", 0);
        over["State"]["FinishedAt"] = json!("2023-11-14T22:13:30Z");
        let Outcome::Again { since_ms, .. } = outcome(&over, 0) else {
            panic!("{:?}", outcome(&over, 0));
        };
        assert_eq!(since_ms, 1_700_000_001_000 - HALF_A_PAUSE);
    }
}
