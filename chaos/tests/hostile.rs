//! One brand does everything at once that could bring a system down: another is neither refused nor forgotten meanwhile. How long
//! things take is measured by `loadtest hostile`, in a release build.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use stack::hostile::{WATCHED, drill};
use stack::system::{Options, Profile, System};

const QUIET: Duration = Duration::from_secs(3);
const ATTACK: Duration = Duration::from_secs(8);

async fn nobody_else_is_refused(profile: Profile) {
    let mut options = Options::new(profile, env!("CARGO_BIN_EXE_chaos").into());
    options.outside_args =
        ["--allow-private-destinations", "--allow-http-destinations", "--destination-rate", "1000"]
            .map(str::to_owned)
            .to_vec();
    options.server_args = vec!["--sender-limit".into(), "1000".into()];
    let mut system = System::start(options).await.unwrap();
    let outcome = drill(&system, QUIET, ATTACK, &[]).await.unwrap();
    println!("{:?} {:?}", outcome.tried, outcome.answered);
    for what in WATCHED {
        println!("{what}: quiet {:?}, attacked {:?}", outcome.quiet.of(what), outcome.attacked.of(what));
        assert!(outcome.attacked.of(what).0 > 20, "{what} was watched");
    }
    assert!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    assert!(outcome.tried.values().all(|tries| *tries > 0), "everything was tried: {:?}", outcome.tried);
    assert_eq!(system.count_dead(), 0, "every process lives");
    system.stop().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_brand_takes_nothing_from_another_embedded() {
    nobody_else_is_refused(Profile::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_brand_takes_nothing_from_another_on_services() {
    nobody_else_is_refused(Profile::Services).await;
}
