-- Tables, and tasks in every state, as a server wrote them before there were revisions.
BEGIN TRANSACTION;
CREATE TABLE agents (
	id TEXT NOT NULL, 
	machine_id TEXT NOT NULL, 
	version TEXT NOT NULL, 
	hostname TEXT NOT NULL, 
	ip_address TEXT NOT NULL, 
	agent_port BIGINT, 
	max_workers BIGINT, 
	metrics TEXT, 
	registered_at FLOAT, 
	last_seen_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "agents" VALUES('agent-1','machine-1','0.1.0','gpu1','10.0.0.1',NULL,4,'{"cpu": 1.5}',1700000000.0,1700001202.0);
INSERT INTO "agents" VALUES('agent-2','machine-2','','','',NULL,NULL,NULL,NULL,1700001202.0);
INSERT INTO "agents" VALUES('agent-3','machine-3','','','',NULL,NULL,NULL,NULL,1700001202.0);
CREATE TABLE attempts (
	id TEXT NOT NULL, 
	task_id TEXT NOT NULL, 
	agent_id TEXT NOT NULL, 
	machine_id TEXT NOT NULL, 
	request_id TEXT NOT NULL, 
	older BIGINT NOT NULL, 
	granted_at FLOAT NOT NULL, 
	lease_expires_at FLOAT NOT NULL, 
	regrant_at FLOAT NOT NULL, 
	started_at FLOAT, 
	ended_at FLOAT, 
	"end" TEXT, 
	exit_code BIGINT, 
	signal TEXT, 
	reason TEXT, 
	error_code BIGINT NOT NULL, 
	error TEXT NOT NULL, 
	usage TEXT, 
	truncated TEXT, 
	PRIMARY KEY (id)
);
INSERT INTO "attempts" VALUES('bbf89250-1037-46dc-a78f-faf828a9cbb0','026add80-5fcf-4ad3-9a0b-bee36a511515','agent-1','machine-1','',0,1700000000.0,1700000300.0,1700000900.0,1700000000.0,1700000000.0,'completed',0,NULL,NULL,0,'','{"wall_s":null,"user_s":null,"system_s":null,"max_rss_bytes":null}',NULL);
INSERT INTO "attempts" VALUES('4aeb2dd7-b295-4f28-941d-1f1d9895facd','0a0a4649-8ed8-432c-b4fb-1772a8831ec7','agent-1','machine-1','',0,1700000000.0,1700000300.0,1700000900.0,1700000000.0,1700000000.0,'completed',3,NULL,NULL,0,'exit code 3',NULL,NULL);
INSERT INTO "attempts" VALUES('18d643e5-a0d0-4dce-a949-4c263345ac18','be66e520-a6fb-4b58-9fe3-9a3b4baa0a4e','agent-1','machine-1','',0,1700000000.0,1700000300.0,1700000900.0,1700000000.0,1700000000.0,'completed',NULL,'SIGTERM',NULL,0,'',NULL,NULL);
INSERT INTO "attempts" VALUES('7a25beba-23c8-4ac8-b53e-822215cc3699','ab629aac-14cc-4116-a035-44baa1e6b0e7','agent-2','machine-2','',0,1700000000.0,1700000300.0,1700000300.0,1700000000.0,NULL,NULL,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "attempts" VALUES('7043c262-b495-4c0f-b8ef-dc3752c2aaa2','a4b7842e-0925-4356-8c3c-bc14fce6d818','agent-2','machine-2','',0,1700000301.0,1700000601.0,1700001201.0,1700000301.0,1700001202.0,'superseded',NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "attempts" VALUES('de8f7b60-8dcc-4849-8f24-f07f601eec17','a4b7842e-0925-4356-8c3c-bc14fce6d818','agent-1','machine-1','',0,1700001202.0,1700001502.0,1700002102.0,1700001202.0,NULL,NULL,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "attempts" VALUES('2b6b25a7-2bed-413a-965a-9d4fb33d7329','d9c62646-567c-4af2-a964-c9741a30f0f7','agent-2','machine-2','',0,1700001202.0,1700001502.0,1700002102.0,NULL,1700001202.0,'released',NULL,NULL,'full',0,'',NULL,NULL);
INSERT INTO "attempts" VALUES('c6993e87-d2c7-4ac4-8e27-56aa9ed3d19c','d9c62646-567c-4af2-a964-c9741a30f0f7','agent-2','machine-2','',0,1700001202.0,1700001502.0,1700002102.0,NULL,1700001202.0,'released',NULL,NULL,'still',0,'',NULL,NULL);
INSERT INTO "attempts" VALUES('bad89542-a7b6-4a41-a140-57ae7a85d067','757931b5-616c-4b49-b432-acc4d2274128','agent-3','machine-3','',1,1700001202.0,1700001502.0,1700002102.0,1700001202.0,1700001202.0,'completed',1,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "attempts" VALUES('98c95e68-e86e-4334-8b5c-88ed9f2b6172','e698168c-a579-401d-8625-0b18728434e3','agent-1','machine-1','',0,1700001202.0,1700001502.0,1700002102.0,NULL,NULL,NULL,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "attempts" VALUES('22a2a505-8c30-4b89-b98c-1e37a4ec157b','bb61c407-ceb7-4bd5-b1c6-c01a10089e33','agent-1','machine-1','',0,1700001202.0,1700001502.0,1700002102.0,1700001202.0,NULL,NULL,NULL,NULL,NULL,0,'',NULL,NULL);
CREATE TABLE idempotency (
	"key" TEXT NOT NULL, 
	method TEXT NOT NULL, 
	path TEXT NOT NULL, 
	body TEXT NOT NULL, 
	code BIGINT NOT NULL, 
	status BIGINT NOT NULL, 
	answer TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY ("key", method, path)
);
INSERT INTO "idempotency" VALUES('key-1','POST','/api/v1/tasks','b73d29ac6a795c16e99aa2356c1b0d62ea8e1c1541bae4859091c37d2a8bf769',0,201,'{"id": "026add80-5fcf-4ad3-9a0b-bee36a511515", "status": "pending", "name": "completed", "type": "shell", "command": "echo done", "args": ["x y", "''"], "exec": false, "workdir": "", "env": {"A": "\u00e4\n"}, "timeout": 3600, "priority": 5, "max_retries": 0, "retry_delay": 60, "machine_id": "", "group_id": "", "disconnect_grace": 600, "on_lost_contact": "keep", "parent_id": null, "retry_count": 0, "created_at": "2023-11-14T22:13:20.000Z", "assigned_at": null, "started_at": null, "ended_at": null, "lease_expires_at": null, "regrant_at": null, "unreachable_since": null, "next_run_at": null, "assigned_agent_id": "", "attempt_id": null, "cancel_requested_at": null, "cancel_reason": "", "progress": null, "progress_message": "", "exit_code": null, "signal": null, "reason": null, "error_code": 0, "error": "", "usage": null, "truncated": null, "stdout": "", "stderr": "", "runs": []}',1700000000.0);
INSERT INTO "idempotency" VALUES('key-2','POST','/api/v1/tasks/97f566ba-6cb6-4308-b168-1af20a1d8f5f/retry','44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a',0,201,'{"id": "96780ad7-2c2c-43ea-a819-e9423359b352", "status": "pending", "name": "cancelled waiting", "type": "shell", "command": "x", "args": [], "exec": false, "workdir": "", "env": {}, "timeout": 3600, "priority": 5, "max_retries": 0, "retry_delay": 60, "machine_id": "", "group_id": "", "disconnect_grace": 600, "on_lost_contact": "keep", "parent_id": "97f566ba-6cb6-4308-b168-1af20a1d8f5f", "retry_count": 0, "created_at": "2023-11-14T22:33:22.000Z", "assigned_at": null, "started_at": null, "ended_at": null, "lease_expires_at": null, "regrant_at": null, "unreachable_since": null, "next_run_at": null, "assigned_agent_id": "", "attempt_id": null, "cancel_requested_at": null, "cancel_reason": "", "progress": null, "progress_message": "", "exit_code": null, "signal": null, "reason": null, "error_code": 0, "error": "", "usage": null, "truncated": null, "stdout": "", "stderr": "", "runs": []}',1700001202.0);
CREATE TABLE outputs (
	attempt_id TEXT NOT NULL, 
	stream TEXT NOT NULL, 
	task_id TEXT NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (attempt_id, stream)
);
INSERT INTO "outputs" VALUES('bbf89250-1037-46dc-a78f-faf828a9cbb0','stdout','026add80-5fcf-4ad3-9a0b-bee36a511515',X'68656C6C6F20C3A40A');
INSERT INTO "outputs" VALUES('bbf89250-1037-46dc-a78f-faf828a9cbb0','stderr','026add80-5fcf-4ad3-9a0b-bee36a511515',X'7761726E0A');
INSERT INTO "outputs" VALUES('4aeb2dd7-b295-4f28-941d-1f1d9895facd','stderr','0a0a4649-8ed8-432c-b4fb-1772a8831ec7',X'6E6F0A');
CREATE TABLE tasks (
	seq INTEGER NOT NULL, 
	id TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	parent_id TEXT, 
	name TEXT NOT NULL, 
	type TEXT NOT NULL, 
	command TEXT NOT NULL, 
	args TEXT NOT NULL, 
	exec BIGINT NOT NULL, 
	workdir TEXT NOT NULL, 
	env TEXT NOT NULL, 
	timeout FLOAT NOT NULL, 
	priority BIGINT NOT NULL, 
	max_retries BIGINT NOT NULL, 
	retry_delay FLOAT NOT NULL, 
	machine_id TEXT NOT NULL, 
	group_id TEXT NOT NULL, 
	disconnect_grace FLOAT, 
	on_lost_contact TEXT NOT NULL, 
	status TEXT NOT NULL, 
	attempt_id TEXT, 
	assigned_agent_id TEXT NOT NULL, 
	assigned_machine_id TEXT NOT NULL, 
	assigned_at FLOAT, 
	started_at FLOAT, 
	ended_at FLOAT, 
	retry_count BIGINT NOT NULL, 
	lost_attempts BIGINT NOT NULL, 
	due_at FLOAT, 
	cancel_requested_at FLOAT, 
	cancel_reason TEXT NOT NULL, 
	progress BIGINT, 
	progress_message TEXT NOT NULL, 
	ready_for TEXT, 
	wake_at FLOAT, 
	exit_code BIGINT, 
	signal TEXT, 
	reason TEXT, 
	error_code BIGINT NOT NULL, 
	error TEXT NOT NULL, 
	usage TEXT, 
	truncated TEXT, 
	PRIMARY KEY (seq), 
	UNIQUE (id)
);
INSERT INTO "tasks" VALUES(1,'026add80-5fcf-4ad3-9a0b-bee36a511515',1700000000.0,NULL,'completed','shell','echo done','["x y", "''"]',0,'','{"A": "\u00e4\n"}',3600.0,5,0,60.0,'','',NULL,'keep','completed','bbf89250-1037-46dc-a78f-faf828a9cbb0','agent-1','machine-1',1700000000.0,1700000000.0,1700000000.0,0,0,NULL,NULL,'',50,'half',NULL,NULL,0,NULL,NULL,0,'','{"wall_s":null,"user_s":null,"system_s":null,"max_rss_bytes":null}',NULL);
INSERT INTO "tasks" VALUES(2,'0a0a4649-8ed8-432c-b4fb-1772a8831ec7',1700000000.0,NULL,'failed','shell','false','[]',0,'','{}',3600.0,5,0,60.0,'','',NULL,'keep','failed','4aeb2dd7-b295-4f28-941d-1f1d9895facd','agent-1','machine-1',1700000000.0,1700000000.0,1700000000.0,0,0,NULL,NULL,'',NULL,'',NULL,NULL,3,NULL,NULL,0,'exit code 3',NULL,NULL);
INSERT INTO "tasks" VALUES(3,'be66e520-a6fb-4b58-9fe3-9a3b4baa0a4e',1700000000.0,NULL,'cancelled','shell','sleep 9','[]',0,'','{}',3600.0,5,0,60.0,'','',NULL,'keep','cancelled','18d643e5-a0d0-4dce-a949-4c263345ac18','agent-1','machine-1',1700000000.0,1700000000.0,1700000000.0,0,0,NULL,1700000000.0,'enough',NULL,'',NULL,NULL,NULL,'SIGTERM',NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(4,'97f566ba-6cb6-4308-b168-1af20a1d8f5f',1700000000.0,NULL,'cancelled waiting','shell','x','[]',0,'','{}',3600.0,5,0,60.0,'','',NULL,'keep','cancelled',NULL,'','',NULL,NULL,1700000000.0,0,0,NULL,NULL,'',NULL,'',NULL,NULL,NULL,NULL,'cancelled',0,'cancelled',NULL,NULL);
INSERT INTO "tasks" VALUES(5,'ab629aac-14cc-4116-a035-44baa1e6b0e7',1700000000.0,NULL,'unreachable','shell','u','[]',0,'','{}',3600.0,5,0,60.0,'','',0.0,'keep','pending','7a25beba-23c8-4ac8-b53e-822215cc3699','agent-2','machine-2',1700000000.0,1700000000.0,NULL,0,0,NULL,NULL,'',NULL,'','',NULL,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(6,'a4b7842e-0925-4356-8c3c-bc14fce6d818',1700000301.0,NULL,'running again','shell','train','[]',0,'','{}',3600.0,1,0,60.0,'','',NULL,'keep','running','de8f7b60-8dcc-4849-8f24-f07f601eec17','agent-1','machine-1',1700001202.0,1700001202.0,NULL,0,1,NULL,NULL,'',7,'epoch 1',NULL,1700002102.0,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(7,'d9c62646-567c-4af2-a964-c9741a30f0f7',1700001202.0,NULL,'waiting for machine-9','shell','waits','[]',0,'','{}',3600.0,2,0,60.0,'machine-9','',NULL,'keep','pending',NULL,'agent-2','machine-2',1700001202.0,NULL,NULL,0,0,NULL,NULL,'',NULL,'','machine-9',NULL,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(8,'757931b5-616c-4b49-b432-acc4d2274128',1700001202.0,NULL,'older agent''s retry','shell','old','[]',0,'','{}',3600.0,1,2,30.0,'','',NULL,'keep','pending',NULL,'agent-3','machine-3',1700001202.0,1700001202.0,NULL,1,0,1700001232.0,NULL,'',NULL,'',NULL,1700001232.0,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(9,'e698168c-a579-401d-8625-0b18728434e3',1700001202.0,NULL,'assigned','shell','a','[]',0,'','{}',3600.0,1,0,60.0,'','',NULL,'keep','assigned','98c95e68-e86e-4334-8b5c-88ed9f2b6172','agent-1','machine-1',1700001202.0,NULL,NULL,0,0,NULL,NULL,'',NULL,'',NULL,1700002102.0,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(10,'c14433e5-6aca-45c3-8b13-02e9c102a7ee',1700001202.0,NULL,'waiting','shell','w','[]',0,'','{}',3600.0,3,0,60.0,'','',NULL,'keep','pending',NULL,'','',NULL,NULL,NULL,0,0,NULL,NULL,'',NULL,'','',NULL,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(11,'7db7af2f-e870-411d-8276-cd053e9b8828',1700001202.0,NULL,'waiting more','script','w','[]',0,'','{}',60.0,4,0,60.0,'','',NULL,'keep','pending',NULL,'','',NULL,NULL,NULL,0,0,NULL,NULL,'',NULL,'','',NULL,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(12,'96780ad7-2c2c-43ea-a819-e9423359b352',1700001202.0,'97f566ba-6cb6-4308-b168-1af20a1d8f5f','cancelled waiting','shell','x','[]',0,'','{}',3600.0,5,0,60.0,'','',NULL,'keep','pending',NULL,'','',NULL,NULL,NULL,0,0,NULL,NULL,'',NULL,'','',NULL,NULL,NULL,NULL,0,'',NULL,NULL);
INSERT INTO "tasks" VALUES(13,'bb61c407-ceb7-4bd5-b1c6-c01a10089e33',1700001202.0,NULL,'cancel requested','shell','c','[]',0,'','{}',3600.0,1,0,60.0,'machine-1','',NULL,'keep','running','22a2a505-8c30-4b89-b98c-1e37a4ec157b','agent-1','machine-1',1700001202.0,1700001202.0,NULL,0,0,NULL,1700001202.0,'stop it',NULL,'',NULL,1700001502.0,NULL,NULL,NULL,0,'',NULL,NULL);
CREATE INDEX tasks_ready ON tasks (ready_for, priority, created_at, seq) WHERE ready_for IS NOT NULL;
CREATE INDEX tasks_status ON tasks (status, seq);
CREATE INDEX tasks_wake ON tasks (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX attempts_task ON attempts (task_id);
CREATE INDEX attempts_unbegun ON attempts (ended_at) WHERE started_at IS NULL;
CREATE INDEX attempts_agent ON attempts (agent_id, ended_at);
CREATE INDEX ix_outputs_task_id ON outputs (task_id);
CREATE INDEX idempotency_age ON idempotency (created_at);
COMMIT;
