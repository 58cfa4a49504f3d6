//! Databases.

use serde_json::json;
use tulle_tests::deep;
use tulle_tests::netns::in_a_node;

use crate::{Mesh, declared, large, named, undeclared};

#[test]
#[ignore = "needs redis-server and redis-tools"]
fn redis_answers_redis_cli() {
    in_a_node(async || {
        // Nothing is waited for on the first, since its number is known.
        let ports =
            [undeclared(6379), undeclared(16379), declared(26379, "redis"), named(36379, "tcp-redis")];
        let mesh = Mesh::start(&ports).await;
        let mut servers = Vec::new();
        for port in &ports {
            let line = format!(
                "exec redis-server --port {} --bind '*' '::*' --protected-mode no --dir $DIR --save ''",
                port.number
            );
            servers.push(mesh.serve(&line, &[*port]).await);
        }
        for to in mesh.addresses() {
            let cli = format!("redis-cli -h {} -p {}", to.ip(), to.port());
            assert_eq!(mesh.client(&format!("{cli} set key value")).await, "OK\n");
            assert_eq!(mesh.client(&format!("{cli} get key")).await, "value\n");
            let size = large();
            let set = format!("head -c {size} /dev/zero | tr '\\0' x | {cli} -x set large");
            assert_eq!(mesh.client(&set).await, "OK\n");
            assert_eq!(mesh.client(&format!("{cli} get large | wc -c")).await.trim(), (size + 1).to_string());
            // Many commands before the first answer.
            let many = format!("seq 5000 | sed 's/.*/incr counted/' | {cli} | tail -1");
            assert_eq!(mesh.client(&many).await, if to.is_ipv4() { "5000\n" } else { "10000\n" });
        }
        // Nobody takes a silent connection for a dead one.
        let silence = if deep() { 20 } else { 4 };
        let ask = |to: std::net::SocketAddr| {
            let (ip, port) = (to.ip(), to.port());
            format!(
                "{{ echo ping; sleep {silence}; echo ping; }} | redis-cli -h {ip} -p {port} >said-{ip}-{port} &"
            )
        };
        let ask: Vec<String> = mesh.addresses().map(ask).collect();
        assert_eq!(
            mesh.client(&format!("{}\nwait; cat said*", ask.join("\n"))).await,
            "PONG\nPONG\n".repeat(8)
        );
        mesh.has_relayed(2 * large(), 2 * large()).await;
    });
}

#[test]
#[ignore = "needs mariadb-server and mariadb-client"]
fn mariadb_greets_its_client_and_keeps_what_it_is_told() {
    in_a_node(async || {
        // The number of the first is known; the second is found out.
        let ports = [undeclared(3306), undeclared(13306)];
        let mesh = Mesh::start(&ports).await;
        let [first, second] = ports.map(|port| port.number);
        let _server = mesh
            .serve(
                &format!(
                    "mariadb-install-db --no-defaults --user=root --datadir=$DIR/data --skip-test-db >$DIR/install.log
                     printf \"CREATE USER app IDENTIFIED BY 'secret';\\nCREATE DATABASE shop;\\nGRANT ALL ON shop.* TO app;\\n\" >init.sql
                     exec mariadbd --no-defaults --user=root --datadir=$DIR/data --socket=$DIR/socket --pid-file=$DIR/pid \
                     --bind-address='*' --port={first} --extra-port={second} --init-file=$DIR/init.sql --skip-name-resolve \
                     --max-allowed-packet=128M"
                ),
                &ports,
            )
            .await;
        for (index, to) in mesh.addresses().enumerate() {
            let cli = format!(
                "mariadb --no-defaults -N -h {} -P {} -u app -psecret --max-allowed-packet=128M shop",
                to.ip(),
                to.port()
            );
            let (table, size) = (format!("t{index}"), large());
            let create = format!("CREATE TABLE {table} (id INT PRIMARY KEY, what LONGTEXT)");
            mesh.client(&format!("{cli} -e '{create}'")).await;
            let insert = format!(
                "{{ printf \"INSERT INTO {table} VALUES (1, '\"; head -c {size} /dev/zero | tr '\\0' x; echo \"')\"; }} | {cli}"
            );
            mesh.client(&insert).await;
            let read = format!("{cli} -e 'SELECT what FROM {table} WHERE id = 1' | tr -d x | wc -c");
            assert_eq!(mesh.client(&read).await.trim(), "1", "the end of the line only");
            let length = format!("{cli} -e 'SELECT LENGTH(what) FROM {table}'");
            assert_eq!(mesh.client(&length).await.trim(), size.to_string());
        }
        mesh.has_relayed(2 * large(), 2 * large()).await;
    });
}

#[test]
#[ignore = "needs zookeeper and a Java runtime"]
fn zookeeper_keeps_what_its_shell_tells_it() {
    in_a_node(async || {
        let ports = [undeclared(2181), named(12181, "tcp-zookeeper")];
        let mesh = Mesh::start(&ports).await;
        let mut servers = Vec::new();
        for port in &ports {
            let lines = format!(
                "printf 'tickTime=2000\\ndataDir=%s\\nclientPort={}\\nadmin.enableServer=false\\n' $DIR >$DIR/zoo.cfg
                 exec java -Xmx128m -XX:TieredStopAtLevel=1 -cp /etc/zookeeper/conf:/usr/share/java/zookeeper.jar \
                 -Dzookeeper.log.dir=$DIR -Dzookeeper.root.logger=INFO,CONSOLE \
                 org.apache.zookeeper.server.quorum.QuorumPeerMain $DIR/zoo.cfg",
                port.number
            );
            servers.push(mesh.serve(&lines, &[*port]).await);
        }
        for to in mesh.addresses() {
            let node = if to.is_ipv4() { "/four" } else { "/six" };
            let said = mesh
                .client(&format!(
                    "{{ echo create {node} kept; echo get {node}; echo ls /; }} | \
                     java -Xmx128m -XX:TieredStopAtLevel=1 -cp /usr/share/java/zookeeper.jar \
                     org.apache.zookeeper.ZooKeeperMain -server '{to}' 2>&1"
                ))
                .await;
            assert!(said.contains(&format!("Created {node}")) && said.contains("\nkept\n"), "{said}");
        }
        mesh.has_relayed(100, 100).await;
    });
}

#[test]
#[ignore = "needs etcd-server and etcd-client"]
fn etcd_answers_etcdctl_over_grpc() {
    in_a_node(async || {
        let ports = [undeclared(2379), declared(12379, "grpc")];
        let mesh = Mesh::start(&ports).await;
        let [first, second] = ports.map(|port| format!("http://[::]:{}", port.number));
        let _server = mesh
            .serve(
                &format!(
                    "exec etcd --data-dir $DIR/data --listen-client-urls {first},{second} --log-level warn \
                     --advertise-client-urls {first} --listen-peer-urls http://127.0.0.1:0"
                ),
                &ports,
            )
            .await;
        for to in mesh.addresses() {
            let cli = format!("ETCDCTL_API=3 etcdctl --endpoints http://{to}");
            assert_eq!(mesh.client(&format!("{cli} put a/key {to}")).await, "OK\n");
            assert_eq!(
                mesh.client(&format!("{cli} get a/key --print-value-only")).await.trim(),
                to.to_string()
            );
            // A stream that lives until somebody else writes.
            let watched = mesh
                .client(&format!(
                    "{cli} watch b/key -- sh -c 'echo $ETCD_WATCH_VALUE; kill $PPID' >watched & \
                     until [ -s watched ]; do {cli} put b/key seen >/dev/null; done; cat watched"
                ))
                .await;
            assert!(watched.contains("seen"), "{watched}");
            // Just under what a request may be.
            let large = format!("head -c 1500000 /dev/zero | tr '\\0' x | {cli} put large");
            assert_eq!(mesh.client(&large).await, "OK\n");
            let read = format!("{cli} get large --print-value-only | wc -c");
            assert_eq!(mesh.client(&read).await.trim(), "1500001");
        }
        for port in &ports {
            let put = [("path", json!("/etcdserverpb.KV/Put")), ("grpc_status", json!(0))];
            for record in mesh.ways(port, &put).await {
                assert_eq!(record["protocol"], "gRPC", "{record}");
            }
        }
        mesh.nothing_in_plaintext();
    });
}
