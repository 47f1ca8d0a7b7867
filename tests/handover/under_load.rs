//! Take-overs while clients come all the time, each with a handshake of its own. `make lifecycle` runs it at full size
//! and shows the figures.

use std::time::{Duration, Instant};

use crate::knocking::Crowd;
use crate::program::Program;
use crate::support::{Etcd, Pki, Ringfence, Settings, number_from_environment};
use crate::upgrade::{TAKE_OVER, UPGRADE};

/// Nobody is refused or reset, however often one takes the place of another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_refused_or_reset_by_a_take_over() {
    let rounds = number_from_environment("RINGFENCE_TAKE_OVERS", 4);
    let per_second = number_from_environment("RINGFENCE_TAKE_OVER_CONNECTIONS", 100);
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let environment = [("RUST_LOG", std::path::Path::new("info"))];
    let settings = Settings { config: UPGRADE, environment: &environment, ..Settings::default() };
    let mut first = Ringfence::start_as(&pki, &etcd.endpoint(), &settings);
    let crowd = Crowd::come(&pki, first.port, u32::try_from(per_second).unwrap());
    let began = Instant::now();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut before: Option<Program> = None;
    for round in 0..rounds {
        let name = format!("round-{round}");
        let mut newer = Program::start(&first, &name, "ringfence.toml", TAKE_OVER);
        let ended = tokio::task::block_in_place(|| {
            newer.serves();
            match before.as_mut() {
                Some(older) => older.wait(),
                None => first.wait(),
            }
        });
        assert_eq!(ended.code(), Some(0), "round {round}");
        before = Some(newer);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let took = began.elapsed();
    let counts = crowd.leave().await;
    let all: u64 = counts.fared.values().sum();
    println!(
        "{rounds} take-overs in {took:.1?}, {:.0} new connections a second, each with a handshake and a Range: {all} came, \
         {} were served at once, {:?} in all, those told to go came again: {:?}",
        all as f64 / took.as_secs_f64(),
        counts.served(),
        counts.fared,
        counts.again,
    );
    counts.all_went_well();
    assert!(all >= rounds * per_second / 4, "{counts:?}");
    let mut last = before.unwrap();
    assert_eq!(tokio::task::block_in_place(|| last.stop()).code(), Some(0));
}
