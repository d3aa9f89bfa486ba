//! What is listed, removed and pruned.

use super::*;

#[test]
fn a_container_that_goes_has_no_statistics() {
    let listed = json!([{"Id": "c"}, {"Id": "d"}, {"Id": "e"}]);
    let turns = || {
        vec![
            turn("GET /containers/json", [ok(&listed)]),
            turn("GET /containers/c/json", [ok(&said("running", 0, 0, "no"))]),
            turn("GET /containers/c/stats", [ok(&json!({}))]),
            turn("GET /containers/d/json", [refusal(404, "gone")]),
            turn("GET /containers/e/json", [ok(&said("running", 0, 0, "no"))]),
            turn("GET /containers/e/stats", [refusal(404, "gone")]),
        ]
    };
    let of = |names: &[&str]| {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        container(ContainerRequest::Stats { names })
    };
    let (done, _) = engine(turns(), async |engine, host| {
        ask(&engine, host, of(&[])).await
    });
    let Ok(Reply::Container(ContainerReply::Stats { samples })) = done else {
        panic!("{done:?}");
    };
    assert_eq!(samples.len(), 1);
    let (done, _) = engine(turns(), async |engine, host| {
        ask(&engine, host, of(&["c", "d"])).await
    });
    assert_eq!(done.unwrap_err().code, FailureCode::NotFound);
}

#[test]
fn what_went_before_a_refusal_is_told() {
    let images = json!([
        {"Id": "sha256:aa", "RepoTags": ["a:1"]}, {"Id": "sha256:bb", "RepoTags": ["b:1"]}]);
    let steps = json!([{"Untagged": "a:1"}, {"Deleted": "sha256:aa"}]);
    let turns = vec![
        turn("GET /images/json", [ok(&images)]),
        turn("DELETE /images/docker.io/library/a:1", [ok(&steps)]),
        turn(
            "DELETE /images/docker.io/library/b:1",
            [refusal(409, "b is in use")],
        ),
    ];
    let ((done, told), _) = engine(turns, async |engine, host| {
        let request = Request::Remove {
            names: vec!["a:1".to_owned(), "b:1".to_owned()],
            force: false,
        };
        let done = ask(&engine, host, request).await;
        (done, host.got().1)
    });
    assert_eq!(done.unwrap_err().message, "docker: b is in use");
    assert_eq!(told, ["untagged: a:1", "deleted: sha256:aa"]);

    let turns = vec![
        turn("DELETE /volumes/a", [nothing()]),
        turn("DELETE /volumes/b", [refusal(409, "b is in use")]),
    ];
    let ((done, told), _) = engine(turns, async |engine, host| {
        let action = VolumeAction::Remove {
            names: vec!["a".to_owned(), "b".to_owned()],
            force: false,
        };
        let done = ask(&engine, host, Request::Volume { action }).await;
        (done, host.got().1)
    });
    assert!(done.is_err());
    assert_eq!(told, ["removed: a"]);
}

#[test]
fn prune_leaves_what_is_used_by_now() {
    let images = json!([
        {"Id": "sha256:aa", "RepoTags": ["a:1"], "Size": 1},
        {"Id": "sha256:bb", "RepoTags": ["b:1"], "Size": 2},
        {"Id": "sha256:cc", "RepoTags": ["c:1"], "Size": 4}]);
    let turns = vec![
        turn("GET /containers/json", [ok(&json!([]))]),
        turn("GET /images/json", [ok(&images)]),
        turn(
            "DELETE /images/docker.io/library/a:1",
            [refusal(409, "used")],
        ),
        turn(
            "DELETE /images/docker.io/library/b:1",
            [refusal(404, "gone")],
        ),
        turn(
            "DELETE /images/docker.io/library/c:1",
            [ok(&json!([{"Untagged": "c:1"}, {"Deleted": "sha256:cc"}]))],
        ),
    ];
    let (done, _) = engine(turns, async |engine, host| {
        let request = PruneRequest {
            all: true,
            ..PruneRequest::default()
        };
        ask(&engine, host, Request::Prune(request)).await
    });
    assert_eq!(
        done,
        Ok(Reply::Pruned {
            removed: vec![
                Removed::Untagged("c:1".to_owned()),
                Removed::Deleted("sha256:cc".to_owned())
            ],
            freed: 4,
        })
    );
    let volumes = json!({"Volumes": [{"Name": "a"}, {"Name": "b"}, {"Name": "c"}]});
    let turns = vec![
        turn("GET /containers/json", [ok(&json!([]))]),
        turn("GET /volumes", [ok(&volumes)]),
        turn("DELETE /volumes/a", [refusal(409, "used")]),
        turn("DELETE /volumes/b", [nothing()]),
        turn("DELETE /volumes/c", [refusal(404, "gone")]),
    ];
    let (done, _) = engine(turns, async |engine, host| {
        let action = VolumeAction::Prune { all: true };
        ask(&engine, host, Request::Volume { action }).await
    });
    let names = vec!["b".to_owned()];
    assert_eq!(done, Ok(Reply::VolumesRemoved { names, freed: 0 }));
}

#[test]
fn an_agent_removes_what_an_earlier_one_was_to_remove() {
    let listed = json!([
        {"Id": "c", "State": "exited", "ImageID": "sha256:1"},
        {"Id": "d", "State": "running", "ImageID": "sha256:1"},
        {"Id": "e", "State": "created", "ImageID": "sha256:1"},
        {"Id": "f", "State": "exited", "ImageID": "sha256:2"},
        {"Id": "g", "State": "exited", "ImageID": "sha256:3"}]);
    let plain = json!({"Config": {"Labels": {"a": "b"}}});
    let committed = json!({"Config": {"Labels": {"vdkr.rm": "1"}}});
    let image = |id: &str, says| turn(format!("GET /images/sha256:{id}/json").leak(), [says]);
    let wait = "POST /containers/d/wait";
    let turns = vec![
        // It is on its way up.
        turn("GET /containers/json", [refusal(503, "later"), ok(&listed)]),
        image("1", ok(&plain)),
        image("2", ok(&committed)),
        image("3", refusal(404, "gone")),
        turn("POST /containers/c/wait", [ok(&json!({"StatusCode": 0}))]),
        turn("GET /containers/c/json", [ok(&said("exited", 0, 0, "no"))]),
        turn("DELETE /containers/c", [nothing()]),
        turn(wait, [ends("DELETE /containers/c", 0)]),
        turn("GET /containers/d/json", [ok(&said("exited", 0, 0, "no"))]),
        turn("DELETE /containers/d", [nothing()]),
    ];
    let ((), asked) = engine(turns, async |engine, host| {
        let state = tempfile::tempdir().unwrap();
        let agent = Agent::open(&ServeOptions::of_state(state.path().to_owned())).unwrap();
        crate::engine::take_over(&Rc::new(agent), &engine).await;
        host.asked("DELETE /containers/c").await;
        host.asked("DELETE /containers/d").await;
    });
    assert!(
        asked[0].contains("filters=%7b%22label%22:%5b%22vdkr.rm%3d1%22%5d%7d"),
        "{asked:?}"
    );
    assert!(
        !asked.iter().any(|line| ["e", "f", "g"]
            .iter()
            .any(|other| line.contains(&format!("/containers/{other}")))),
        "{asked:?}"
    );
}
