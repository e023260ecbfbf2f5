//! What a monitor costs: printed always, and bounded where a bound holds on any machine.
//! `CRI_MONITOR` names another program than the development build.

use std::time::{Duration, Instant};

use cri_server::host::monitor::{Monitor, NamespaceKind, NewNamespace, PodSetup};

use crate::ground::{Ground, binary, on_ground, with_each_runtime, with_one_runtime};

const ROUNDS: usize = 15;

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn kilobytes(pid: i32, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    value.trim().trim_end_matches(" kB").parse().unwrap()
}

fn pod(ground: &Ground, round: usize) -> PodSetup {
    let dir = ground.path(&format!("pod{round}"));
    std::fs::create_dir(&dir).unwrap();
    let kinds = [(NamespaceKind::Net, "net"), (NamespaceKind::Ipc, "ipc"), (NamespaceKind::Uts, "uts")];
    let namespaces = kinds.map(|(kind, name)| NewNamespace { kind, pin: dir.join("ns").join(name) }).to_vec();
    PodSetup { namespaces, hostname: Some("pod".into()), dir, ..ground.setup() }
}

#[test]
fn the_cost_of_a_sandbox() {
    on_ground(async |ground| {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let setup = pod(ground, round);
            let at = Instant::now();
            let monitor = Monitor::spawn(&binary(), &setup).await.unwrap();
            up.push(at.elapsed());
            let at = Instant::now();
            monitor.shutdown().await.unwrap();
            monitor.gone().await;
            down.push(at.elapsed());
        }
        println!("sandbox with net, ipc, uts: spawn {:.2} ms, shutdown {:.2} ms", median(up), median(down));
    });
}

#[test]
fn the_memory_of_twenty_pods() {
    with_one_runtime(async |ground, runtime| {
        let (mut monitors, mut inits, mut held) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..20 {
            let mut setup = pod(ground, round);
            let pin = setup.dir.join("ns/pid");
            setup.namespaces.push(NewNamespace { kind: NamespaceKind::Pid, pin });
            let monitor = Monitor::spawn(&binary(), &setup).await.unwrap();
            ground.run(&monitor, runtime, "sleep 1000").await;
            monitors.push(monitor.welcome().monitor_pid);
            inits.push(monitor.welcome().pod_init.unwrap());
            held.push(monitor);
        }
        for (what, pids) in [("monitor", monitors), ("pod init", inits)] {
            let average = |key| pids.iter().map(|pid| kilobytes(*pid, key)).sum::<u64>() / pids.len() as u64;
            let (pss, private) = (average("Pss:"), average("Private_Dirty:"));
            println!("{what}, one of twenty with a container each: Pss {pss} kB, private {private} kB");
            assert!(private <= 512);
        }
        for monitor in held {
            monitor.shutdown().await.unwrap();
        }
    });
}

#[test]
fn the_cost_of_a_container() {
    with_each_runtime(async |ground, runtime| {
        let monitor = ground.monitor().await;
        let (mut create, mut start, mut delete) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let plan = ground.plan(runtime, "sleep 1000");
            let at = Instant::now();
            plan.create(&monitor).await;
            create.push(at.elapsed());
            let at = Instant::now();
            monitor.start(plan.id()).await.unwrap();
            start.push(at.elapsed());
            let at = Instant::now();
            monitor.delete(plan.id()).await.unwrap();
            delete.push(at.elapsed());
        }
        let name = runtime.path.display();
        let (create, start, delete) = (median(create), median(start), median(delete));
        println!("{name}: create {create:.1} ms, start {start:.1} ms, delete {delete:.1} ms");
        let plan = ground.run(&monitor, runtime, "sleep 1000").await;
        let pid = monitor.welcome().monitor_pid;
        let [rss, pss, private] = ["Rss:", "Pss:", "Private_Dirty:"].map(|key| kilobytes(pid, key));
        println!("{name}: monitor with one container: RSS {rss} kB, Pss {pss} kB, private {private} kB");
        monitor.delete(plan.id()).await.unwrap();
        monitor.shutdown().await.unwrap();
    });
}
