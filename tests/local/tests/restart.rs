//! `cargo local` as a process: killed without warning, started again, ended by Ctrl-C.
#![expect(clippy::unwrap_used, reason = "a test says by failing what is wrong")]

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use local::local_folder;
use rustix::process::{Pid, Signal, kill_process, test_kill_process_group};
use serde_json::Value;

/// A first start builds the functions.
const STARTED: Duration = Duration::from_secs(1_500);
const ENDED: Duration = Duration::from_secs(30);

/// Kills what it holds when a test fails.
struct Local {
    child: Child,
    folder: PathBuf,
}

impl Local {
    fn start(folder: &Path, port: u16) -> Self {
        // What a killed predecessor left is no sign of this one; no two are alike, for each has secrets of its own.
        let left_over = std::fs::read(folder.join("stack.json")).ok();
        let child = Command::new(env!("CARGO_BIN_EXE_local"))
            .args(["--no-demo", "--folder"])
            .arg(folder)
            .env("TOKENTILL_AWS_PORT", port.to_string())
            .env_remove("TOKENTILL_STRIPE_URL")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut local = Self { child, folder: folder.to_owned() };
        until("stack.json", STARTED, || {
            assert!(local.child.try_wait().unwrap().is_none(), "cargo local ended before it was ready");
            std::fs::read(local.folder.join("stack.json")).is_ok_and(|json| Some(json) != left_over)
        });
        local
    }

    fn signal(&mut self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        until("cargo local to end", ENDED, || self.child.try_wait().unwrap().is_some());
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, bound: Duration, mut question: impl FnMut() -> bool) {
    let began = Instant::now();
    while !question() {
        assert!(began.elapsed() < bound, "{what}: not within {} s", bound.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn answers(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[test]
fn a_second_start_cleans_up_after_a_kill_and_ctrl_c_leaves_no_process() {
    let folder = local_folder().join("tests").join("restart");
    let _ = std::fs::remove_dir_all(&folder);
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();

    let mut first = Local::start(&folder, port);
    assert!(answers(port));
    first.signal(Signal::KILL);
    assert!(folder.join("stack.json").exists(), "a killed process cannot have removed it");

    // Without the second start's cleaning up, the port would be taken or the folder claimed.
    let mut second = Local::start(&folder, port);
    let ministack: Value = serde_json::from_slice(&std::fs::read(folder.join("ministack.pid")).unwrap()).unwrap();
    let group = Pid::from_raw(i32::try_from(ministack["pid"].as_i64().unwrap()).unwrap()).unwrap();
    assert!(test_kill_process_group(group).is_ok(), "the emulator runs");
    second.signal(Signal::INT);
    until("the emulator to end", ENDED, || test_kill_process_group(group).is_err());
    assert!(!answers(port) && !folder.join("stack.json").exists());
    let _ = std::fs::remove_dir_all(&folder);
}
