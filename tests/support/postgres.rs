//! A throwaway PostgreSQL: one server a test process, one database a test.
//!
//! The server is a child of a shell that waits for the end of its input, whose other end this process holds. However
//! this process ends, killed included, the pipe closes, and the shell stops the server and removes its files.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

struct Server {
    port: u16,
    /// Held so that the shell behind it waits.
    _lifeline: ChildStdin,
}

static SERVER: LazyLock<Server> = LazyLock::new(start);

/// Makes an empty database and returns its URL.
pub async fn fresh_database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    // Starting takes a second or so of waiting for other processes.
    let port = tokio::task::spawn_blocking(|| SERVER.port).await.expect("the PostgreSQL of the tests has started");
    let name = format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut admin = PgConnection::connect(&format!("postgres://postgres@127.0.0.1:{port}/postgres")).await.unwrap();
    admin.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    admin.close().await.unwrap();
    format!("postgres://postgres@127.0.0.1:{port}/{name}")
}

fn start() -> Server {
    let bin = programs();
    let user = unprivileged_user();
    let mut log = VecDeque::new();
    // The port is free a moment before the server takes it; should another process be faster, the next is tried.
    for _ in 0..5 {
        let folder = tempfile::Builder::new().prefix("meet-projector-postgres-").tempdir().unwrap().keep();
        if let Some((uid, gid)) = user {
            chown(&folder, Some(uid), Some(gid)).unwrap();
        }
        let data = folder.join("data");
        let mut initdb = Command::new(bin.join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--pgdata"]);
        initdb.arg(&data).current_dir(&folder);
        as_user(&mut initdb, user);
        let made = initdb.output().unwrap();
        assert!(made.status.success(), "initdb failed:\n{}", String::from_utf8_lossy(&made.stderr));

        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        match serve(&bin, &folder, &data, port, user) {
            Ok(lifeline) => return Server { port, _lifeline: lifeline },
            Err(lines) => log = lines,
        }
    }
    panic!("PostgreSQL did not start:\n{}", Vec::from(log).join("\n"));
}

/// Starts the server and waits until it says that it accepts connections; its last lines otherwise.
#[expect(clippy::zombie_processes, reason = "it ends when its input does, which is when this process ends")]
fn serve(
    bin: &Path,
    folder: &Path,
    data: &Path,
    port: u16,
    user: Option<(u32, u32)>,
) -> Result<ChildStdin, VecDeque<String>> {
    // SIGQUIT is the immediate shutdown: nothing here is worth a checkpoint. The shell lets go of the log, so that its
    // end is the end of the server.
    let script = r#"
        "$1/postgres" -D "$3" -p "$4" -h 127.0.0.1 -c unix_socket_directories= -c fsync=off \
            -c synchronous_commit=off -c full_page_writes=off -c max_connections=200 \
            -c shared_buffers=16MB </dev/null >&2 &
        exec 2>/dev/null
        cat >/dev/null
        kill -QUIT $! ; wait $! ; rm -rf "$2"
    "#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(bin).arg(folder).arg(data).arg(port.to_string());
    shell.env("LC_ALL", "C").current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A group of its own: an interrupt on the terminal reaches it through the pipe, in order.
    shell.process_group(0);
    as_user(&mut shell, user);
    let mut child = shell.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut last = VecDeque::new();
    for line in lines.by_ref().map_while(Result::ok) {
        if line.contains("ready to accept connections") {
            // Read on, or the server would stop at a full pipe.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(child.stdin.take().unwrap());
        }
        if last.len() == 40 {
            last.pop_front();
        }
        last.push_back(line);
    }
    Err(last)
}

/// The folder with `initdb` and `postgres`.
fn programs() -> PathBuf {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<PathBuf> = installed.map(|entry| entry.path().join("bin")).collect();
    versions.sort();
    let mut folders = versions.into_iter().rev().chain(std::env::split_paths(&on_path));
    folders.find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists()).expect(
        "the tests need PostgreSQL's initdb and postgres, on PATH or in /usr/lib/postgresql/*/bin; install it, for \
         example with `apt-get install postgresql`, `dnf install postgresql-server` or `brew install postgresql`",
    )
}

/// PostgreSQL refuses to run as root: then somebody with fewer rights runs it.
fn unprivileged_user() -> Option<(u32, u32)> {
    let id = Command::new("id").arg("-u").output().unwrap();
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let find = |name: &str| {
        let line = users.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        let mut fields = line.split(':').skip(2).map(|field| field.parse::<u32>().ok());
        Some((fields.next()??, fields.next()??))
    };
    Some(find("postgres").or_else(|| find("nobody")).expect("there is a user postgres or nobody to run PostgreSQL as"))
}

fn as_user(command: &mut Command, user: Option<(u32, u32)>) {
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
}
