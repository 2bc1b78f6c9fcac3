BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0005');
CREATE TABLE chat_engine (
	place INTEGER NOT NULL, 
	app VARCHAR(255) NOT NULL, 
	model VARCHAR(1024) NOT NULL, 
	path TEXT NOT NULL, 
	state VARCHAR(255) NOT NULL, 
	since DOUBLE NOT NULL, 
	used_at DOUBLE NOT NULL, 
	error TEXT, 
	PRIMARY KEY (place)
);
CREATE TABLE chat_requests (
	id VARCHAR(255) NOT NULL, 
	app VARCHAR(255) NOT NULL, 
	expires_at DOUBLE NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE checkpoints (
	number INTEGER NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	job_id VARCHAR(255) NOT NULL, 
	created_at INTEGER NOT NULL, 
	phase VARCHAR(255) NOT NULL, 
	step INTEGER NOT NULL, 
	path TEXT NOT NULL, 
	model_name VARCHAR(640) NOT NULL, 
	metrics JSON NOT NULL, 
	PRIMARY KEY (number), 
	FOREIGN KEY(job_id) REFERENCES jobs (id), 
	UNIQUE (id), 
	UNIQUE (job_id, phase, step), 
	UNIQUE (model_name)
);
CREATE TABLE engine_users (
	app VARCHAR(255) NOT NULL, 
	job_id VARCHAR(255) NOT NULL, 
	attempt INTEGER NOT NULL, 
	PRIMARY KEY (app, job_id, attempt), 
	FOREIGN KEY(app) REFERENCES engines (app), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "engine_users" VALUES('generator-abc','ftjob-running',1);
CREATE TABLE engines (
	app VARCHAR(255) NOT NULL, 
	label TEXT NOT NULL, 
	state VARCHAR(255) NOT NULL, 
	num_replicas INTEGER NOT NULL, 
	use_gpu BOOLEAN NOT NULL, 
	used_at DOUBLE NOT NULL, 
	PRIMARY KEY (app)
);
INSERT INTO "engines" VALUES('generator-abc','generator of models/qwen3','starting',1,0,1.79563344753035306934e+09);
CREATE TABLE events (
	number INTEGER NOT NULL, 
	job_id VARCHAR(255) NOT NULL, 
	"key" VARCHAR(255), 
	created_at INTEGER NOT NULL, 
	level VARCHAR(255) NOT NULL, 
	type VARCHAR(255) NOT NULL, 
	message TEXT NOT NULL, 
	data JSON, 
	PRIMARY KEY (number), 
	FOREIGN KEY(job_id) REFERENCES jobs (id), 
	UNIQUE (job_id, "key")
);
INSERT INTO "events" VALUES(1,'ftjob-done',NULL,1795633446,'info','message','Job accepted; it starts when a place is free','null');
INSERT INTO "events" VALUES(2,'ftjob-done',NULL,1795633446,'info','message','Attempt 1 starts','null');
INSERT INTO "events" VALUES(3,'ftjob-done','sft-4',1795633446,'info','metrics','step 4: loss 1.0','{"step": 4, "train_loss": 1.0, "num_tokens": 100.0}');
INSERT INTO "events" VALUES(4,'ftjob-done',NULL,1795633446,'info','message','Done: ft:qwen3::ftjob-done','null');
INSERT INTO "events" VALUES(5,'ftjob-running',NULL,1795633446,'info','message','Job accepted; it starts when a place is free','null');
INSERT INTO "events" VALUES(6,'ftjob-running',NULL,1795633446,'info','message','Attempt 1 starts','null');
INSERT INTO "events" VALUES(7,'ftjob-improving',NULL,1795633447,'info','message','Job accepted; it starts when a place is free','null');
INSERT INTO "events" VALUES(8,'ftjob-improving',NULL,1795633447,'info','message','Attempt 1 starts','null');
INSERT INTO "events" VALUES(9,'ftjob-tuned',NULL,1795633447,'info','message','Job accepted; it starts when a place is free','null');
INSERT INTO "events" VALUES(10,'ftjob-tuned',NULL,1795633447,'info','message','Attempt 1 starts','null');
INSERT INTO "events" VALUES(11,'ftjob-tuned','sft-4',1795633447,'info','metrics','step 4: loss 1.0','{"step": 4, "train_loss": 1.0, "num_tokens": 100.0}');
INSERT INTO "events" VALUES(12,'ftjob-tuned',NULL,1795633447,'info','message','Done','null');
INSERT INTO "events" VALUES(13,'escore-running',NULL,1795633447,'info','message','Job accepted; it starts when a place is free','null');
INSERT INTO "events" VALUES(14,'escore-running',NULL,1795633447,'info','message','Attempt 1 starts','null');
INSERT INTO "events" VALUES(15,'ftjob-queued',NULL,1795633447,'info','message','Job accepted; it starts when a place is free','null');
CREATE TABLE files (
	number INTEGER NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	created_at INTEGER NOT NULL, 
	filename VARCHAR(255) NOT NULL, 
	purpose VARCHAR(255) NOT NULL, 
	bytes BIGINT NOT NULL, 
	sha256 VARCHAR(255) NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (id)
);
INSERT INTO "files" VALUES(1,'file-train',1795633446,'train.jsonl','fine-tune',1234,'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa');
INSERT INTO "files" VALUES(2,'file-valid',1795633446,'validation.jsonl','fine-tune',234,'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb');
CREATE TABLE "jobs" (
	number INTEGER NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	created_at INTEGER NOT NULL, 
	finished_at INTEGER, 
	state VARCHAR(255) NOT NULL, 
	spec JSON NOT NULL, 
	paths JSON NOT NULL, 
	fine_tuned_model VARCHAR(512), 
	error JSON, 
	trained_tokens BIGINT, 
	request_key VARCHAR(255), 
	request_digest VARCHAR(255) NOT NULL, 
	attempt INTEGER NOT NULL, 
	lost_drivers INTEGER NOT NULL, 
	claimed_at FLOAT, 
	lease_expires_at FLOAT, 
	kind VARCHAR(255) DEFAULT 'fine_tuning' NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (request_key), 
	UNIQUE (fine_tuned_model), 
	UNIQUE (id)
);
INSERT INTO "jobs" VALUES(1,'ftjob-done',1795633446,1795633446,'succeeded','{"model": "qwen3", "training_file": "file-train", "validation_file": "file-valid", "method": {"type": "wmss", "wmss": {"preset": "wmss-v2", "weak_model": null, "strong_model": null, "more_weak_models": [], "weak_shares": null, "start_at": "end", "rounds": 1, "mixing": "logits", "mixing_weight": 0.5, "mixing_weight_end": null, "mixing_schedule": "constant", "weak_update": "joint", "weak_cache": false, "weighting": "v2", "alpha": 0.1, "beta": 0.8, "gamma": 0.1, "max_share": null, "deduplicate": true, "hyperparameters": {"n_epochs": 1, "max_steps": 4, "batch_size": "auto", "learning_rate": 0.001, "learning_rate_multiplier": null, "lr_schedule": "linear", "warmup_ratio": 0.1, "weight_decay": 0.0, "gradient_clip": 1.0, "max_length": "auto", "micro_batch_tokens": 8192, "packing": true, "precision": "float32", "activation_checkpointing": "none", "optimizer": "adamw", "neftune_alpha": null, "lora": null, "compile": false, "telemetry_every": 10, "sft_epochs": 1}}}, "seed": 42, "suffix": null, "metadata": null, "resources": {"num_workers": 1, "parallelism": "ddp", "use_gpu": null}, "checkpointing": {"every_steps": 100, "keep_last": 2}}','{"model": "/home/wmss/models/qwen3", "weak_model": null, "strong_model": null, "more_weak_models": []}','ft:qwen3::ftjob-done','null',100,'key-ftjob-done','ftjob-done',1,0,1.7956334466717221737e+09,NULL,'fine_tuning');
INSERT INTO "jobs" VALUES(2,'ftjob-running',1795633446,NULL,'running','{"model": "qwen3", "training_file": "file-train", "validation_file": "file-valid", "method": {"type": "wmss", "wmss": {"preset": "wmss-v2", "weak_model": null, "strong_model": null, "more_weak_models": [], "weak_shares": null, "start_at": "end", "rounds": 1, "mixing": "logits", "mixing_weight": 0.5, "mixing_weight_end": null, "mixing_schedule": "constant", "weak_update": "joint", "weak_cache": false, "weighting": "v2", "alpha": 0.1, "beta": 0.8, "gamma": 0.1, "max_share": null, "deduplicate": true, "hyperparameters": {"n_epochs": 1, "max_steps": 4, "batch_size": "auto", "learning_rate": 0.001, "learning_rate_multiplier": null, "lr_schedule": "linear", "warmup_ratio": 0.1, "weight_decay": 0.0, "gradient_clip": 1.0, "max_length": "auto", "micro_batch_tokens": 8192, "packing": true, "precision": "float32", "activation_checkpointing": "none", "optimizer": "adamw", "neftune_alpha": null, "lora": null, "compile": false, "telemetry_every": 10, "sft_epochs": 1}}}, "seed": 42, "suffix": null, "metadata": null, "resources": {"num_workers": 1, "parallelism": "ddp", "use_gpu": null}, "checkpointing": {"every_steps": 100, "keep_last": 2}}','{"model": "/home/wmss/models/qwen3", "weak_model": null, "strong_model": null, "more_weak_models": []}','ft:qwen3::ftjob-running',NULL,NULL,'key-ftjob-running','ftjob-running',1,0,1.79563344692995166779e+09,1.79563347752839684483e+09,'fine_tuning');
INSERT INTO "jobs" VALUES(3,'ftjob-improving',1795633447,NULL,'running','{"model": "echo", "training_file": "file-train", "validation_file": "file-valid", "method": {"type": "self_improvement", "self_improvement": {"verifier": {"type": "exact", "ignore_case": false}, "rounds": 2, "samples_per_round": 64, "samples_per_prompt": 2, "estimate_levels": null, "curriculum": {"policy": "clock", "target": 0.37, "band": [0.2, 0.6], "probe_fraction": 0.1, "replay_fraction": 0.15, "patience": 3}, "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": null, "max_new_tokens": 8}, "accept": {"max_per_prompt": null, "deduplicate": "normalized", "min_accepted": 4, "max_level_share": 0.7, "window": 1}, "steps_per_round": 3, "start_from": "continue", "weak_driven": {"when": "off", "mixing_weight": 0.5, "weak_update": "frozen"}, "evaluation_samples": 2, "stop": {"min_gain": 0.005, "patience": 2, "max_samples": null, "max_hours": null, "max_drop": 0.03}, "hyperparameters": {"n_epochs": 1, "max_steps": null, "batch_size": 16, "learning_rate": 0.0003, "learning_rate_multiplier": null, "lr_schedule": "linear", "warmup_ratio": 0.1, "weight_decay": 0.0, "gradient_clip": 1.0, "max_length": "auto", "micro_batch_tokens": 8192, "packing": true, "precision": "float32", "activation_checkpointing": "none", "optimizer": "adamw", "neftune_alpha": null, "lora": null, "compile": false, "telemetry_every": 10}}}, "seed": 42, "suffix": null, "metadata": null, "resources": {"num_workers": 1, "parallelism": "ddp", "use_gpu": null}, "checkpointing": {"every_steps": 100, "keep_last": 2}}','{"model": "/home/wmss/models/qwen3", "weak_model": null, "strong_model": null, "more_weak_models": []}','ft:qwen3::ftjob-improving',NULL,NULL,'key-ftjob-improving','ftjob-improving',1,0,1.79563344706545448305e+09,1.79563347734447813037e+09,'fine_tuning');
INSERT INTO "jobs" VALUES(4,'ftjob-tuned',1795633447,1795633447,'succeeded','{"model": "qwen3", "training_file": "file-train", "validation_file": "file-valid", "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1, "max_steps": 4, "batch_size": "auto", "learning_rate": 0.001, "learning_rate_multiplier": null, "lr_schedule": "linear", "warmup_ratio": 0.1, "weight_decay": 0.0, "gradient_clip": 1.0, "max_length": "auto", "micro_batch_tokens": 8192, "packing": true, "precision": "float32", "activation_checkpointing": "none", "optimizer": "adamw", "neftune_alpha": null, "lora": null, "compile": false, "telemetry_every": 10}}}, "seed": 42, "suffix": null, "metadata": null, "resources": {"num_workers": 1, "parallelism": "ddp", "use_gpu": null}, "checkpointing": {"every_steps": 100, "keep_last": 2}}','{"model": "/home/wmss/models/qwen3", "weak_model": null, "strong_model": null, "more_weak_models": []}','ft:qwen3::ftjob-tuned','null',100,'key-ftjob-tuned','ftjob-tuned',1,0,1.7956334473584296703e+09,NULL,'fine_tuning');
INSERT INTO "jobs" VALUES(5,'escore-running',1795633447,NULL,'running','{"file": "file-train", "models": ["/home/wmss/qwen3", "/home/wmss/qwen3_other"], "max_length": "auto", "tokens": true, "dtype": "float32", "num_replicas": 1, "use_gpu": null, "metadata": null}','{"models": ["/home/wmss/models/qwen3", "/home/wmss/models/other"]}',NULL,NULL,NULL,'key-escore-running','escore-running',1,0,1.79563344746164822579e+09,1.79563347751715683938e+09,'entropy_scores');
INSERT INTO "jobs" VALUES(6,'ftjob-queued',1795633447,NULL,'queued','{"model": "qwen3", "training_file": "file-train", "validation_file": "file-valid", "method": {"type": "wmss", "wmss": {"preset": "wmss-v2", "weak_model": null, "strong_model": null, "more_weak_models": [], "weak_shares": null, "start_at": "end", "rounds": 1, "mixing": "logits", "mixing_weight": 0.5, "mixing_weight_end": null, "mixing_schedule": "constant", "weak_update": "joint", "weak_cache": false, "weighting": "v2", "alpha": 0.1, "beta": 0.8, "gamma": 0.1, "max_share": null, "deduplicate": true, "hyperparameters": {"n_epochs": 1, "max_steps": 4, "batch_size": "auto", "learning_rate": 0.001, "learning_rate_multiplier": null, "lr_schedule": "linear", "warmup_ratio": 0.1, "weight_decay": 0.0, "gradient_clip": 1.0, "max_length": "auto", "micro_batch_tokens": 8192, "packing": true, "precision": "float32", "activation_checkpointing": "none", "optimizer": "adamw", "neftune_alpha": null, "lora": null, "compile": false, "telemetry_every": 10, "sft_epochs": 1}}}, "seed": 42, "suffix": null, "metadata": null, "resources": {"num_workers": 1, "parallelism": "ddp", "use_gpu": null}, "checkpointing": {"every_steps": 100, "keep_last": 2}}','{"model": "/home/wmss/models/qwen3", "weak_model": null, "strong_model": null, "more_weak_models": []}','ft:qwen3::ftjob-queued',NULL,NULL,'key-ftjob-queued','ftjob-queued',0,0,NULL,NULL,'fine_tuning');
CREATE TABLE phases (
	job_id VARCHAR(255) NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	started_at DOUBLE NOT NULL, 
	finished_at DOUBLE, 
	done INTEGER NOT NULL, 
	total INTEGER NOT NULL, 
	artifacts JSON, 
	PRIMARY KEY (job_id, name), 
	FOREIGN KEY(job_id) REFERENCES jobs (id)
);
INSERT INTO "phases" VALUES('ftjob-done','validate',1.79563344669777941705e+09,1.7956334467289776802e+09,1,1,'{"num_samples": 48, "num_tokens": 2254, "num_targets": 1410, "num_truncated": 0, "end_token_ids": [2], "max_length": 256, "batch_size": 6}');
INSERT INTO "phases" VALUES('ftjob-done','sft',1.7956334467388656139e+09,1.79563344675609660146e+09,1,1,'{"checkpoint": "/home/wmss/runs/ftjob-1-sft-1/step-0004/strong", "source": {"folder": "/home/wmss/runs/ftjob-1-sft-1/step-0004/strong", "adapter": null, "states": null}, "num_steps": 4, "saturated_at": null, "useful_weak": null}');
INSERT INTO "phases" VALUES('ftjob-done','score_weak',1.79563344675922489162e+09,1.79563344677286338803e+09,1,1,'{"table": "/home/wmss/cache/entropy/7cb5d809977414b2573e63c02b4350ed.parquet", "mean_entropy": 1.8090906025738995, "nll": 7.403433297172929, "top1": 0.02127659574468085, "provenance": {"engine": "torch", "version": "2.13.0+cpu", "dtype": "float32", "device": "cpu", "batch_invariant": true}, "states": null, "states_digest": null}');
INSERT INTO "phases" VALUES('ftjob-done','score_strong',1.79563344678705573082e+09,1.79563344679952287675e+09,1,1,'{"table": "/home/wmss/cache/entropy/98eac7f30a12364473b2e0d10eb34bb7.parquet", "mean_entropy": 2.2398761481737903, "nll": 6.475841204409904, "top1": 0.02127659574468085, "provenance": {"engine": "torch", "version": "2.13.0+cpu", "dtype": "float32", "device": "cpu", "batch_invariant": true}, "states": null, "states_digest": null}');
INSERT INTO "phases" VALUES('ftjob-done','weigh',1.79563344680556631087e+09,1.79563344682008171077e+09,1,1,'{"table": "/home/wmss/job/curriculum.parquet", "indices": [1, 2, 4, 5, 7, 8, 9, 10, 13, 15, 16, 17, 18, 20, 21, 22, 26, 30, 32, 33, 35, 36, 37, 38, 39, 40, 41, 42, 44, 46, 47], "num_unique": 31, "num_duplicates": 17, "effective_sample_size": 47.79199888048395, "largest_share": 0.02455917260803324, "term_masses": {"drop": 0.0, "strong": 0.97652368585506, "rise": 0.023476314144939985}, "mean_entropy_weak": 1.8090906025738995, "mean_entropy_strong": 2.2398761481737903}');
INSERT INTO "phases" VALUES('ftjob-done','joint',1.79563344682411742212e+09,1.79563344684031891821e+09,1,1,'{"checkpoint": "/home/wmss/runs/ftjob-1-joint-1/step-0004/strong", "source": {"folder": "/home/wmss/runs/ftjob-1-joint-1/step-0004/strong", "adapter": null, "states": null}, "num_steps": 4}');
INSERT INTO "phases" VALUES('ftjob-done','export',1.79563344684418916708e+09,1.79563344685919594762e+09,1,1,'{"path": "/home/wmss/result", "name": "ft:qwen3::ftjob-1", "digest": "5f2fad510e04e81c78a067430ad38aecf1526525d9dfa0d976d34778cd2aa277", "num_bytes": 330999}');
INSERT INTO "phases" VALUES('ftjob-done','evaluate',1.79563344686779260634e+09,1.79563344688052177432e+09,1,1,'{"results": {"base": {"nll": 7.584773682182034, "mean_entropy": 1.800552506591578, "accuracy": {"pass_at_1": 0.0, "interval_95": [0.0, 0.2424940095530979], "num_correct": 0, "num_problems": 12, "truncated_share": 1.0, "max_new_tokens": 80}}, "strong_before": {"nll": 6.667401195648644, "mean_entropy": 2.227463995701195, "accuracy": {"pass_at_1": 0.0, "interval_95": [0.0, 0.2424940095530979], "num_correct": 0, "num_problems": 12, "truncated_share": 1.0, "max_new_tokens": 80}}, "result": {"nll": 5.033597870336639, "mean_entropy": 3.9992161132556947, "accuracy": {"pass_at_1": 0.0, "interval_95": [0.0, 0.2424940095530979], "num_correct": 0, "num_problems": 12, "truncated_share": 1.0, "max_new_tokens": 80}}}}');
INSERT INTO "phases" VALUES('ftjob-running','validate',1.79563344694198513034e+09,1.79563344695688939089e+09,1,1,'{"num_samples": 48, "num_tokens": 2254, "num_targets": 1410, "num_truncated": 0, "end_token_ids": [2], "max_length": 256, "batch_size": 6}');
INSERT INTO "phases" VALUES('ftjob-running','sft',1.79563344696006798751e+09,1.79563344697716760628e+09,1,1,'{"checkpoint": "/home/wmss/runs/ftjob-1-sft-1/step-0004/strong", "source": {"folder": "/home/wmss/runs/ftjob-1-sft-1/step-0004/strong", "adapter": null, "states": null}, "num_steps": 4, "saturated_at": null, "useful_weak": null}');
INSERT INTO "phases" VALUES('ftjob-running','score_weak',1.79563344698166966442e+09,1.79563344699779415128e+09,1,1,'{"table": "/home/wmss/cache/entropy/7cb5d809977414b2573e63c02b4350ed.parquet", "mean_entropy": 1.8090906025738995, "nll": 7.403433297172929, "top1": 0.02127659574468085, "provenance": {"engine": "torch", "version": "2.13.0+cpu", "dtype": "float32", "device": "cpu", "batch_invariant": true}, "states": null, "states_digest": null}');
INSERT INTO "phases" VALUES('ftjob-running','score_strong',1.79563344700682926179e+09,1.7956334470184996128e+09,1,1,'{"table": "/home/wmss/cache/entropy/98eac7f30a12364473b2e0d10eb34bb7.parquet", "mean_entropy": 2.2398761481737903, "nll": 6.475841204409904, "top1": 0.02127659574468085, "provenance": {"engine": "torch", "version": "2.13.0+cpu", "dtype": "float32", "device": "cpu", "batch_invariant": true}, "states": null, "states_digest": null}');
INSERT INTO "phases" VALUES('ftjob-running','weigh',1.79563344703052282336e+09,1.79563344703802609449e+09,1,1,'{"table": "/home/wmss/job/curriculum.parquet", "indices": [1, 2, 4, 5, 7, 8, 9, 10, 13, 15, 16, 17, 18, 20, 21, 22, 26, 30, 32, 33, 35, 36, 37, 38, 39, 40, 41, 42, 44, 46, 47], "num_unique": 31, "num_duplicates": 17, "effective_sample_size": 47.79199888048395, "largest_share": 0.02455917260803324, "term_masses": {"drop": 0.0, "strong": 0.97652368585506, "rise": 0.023476314144939985}, "mean_entropy_weak": 1.8090906025738995, "mean_entropy_strong": 2.2398761481737903}');
INSERT INTO "phases" VALUES('ftjob-running','joint',1.79563344704522037499e+09,NULL,3,10,NULL);
INSERT INTO "phases" VALUES('ftjob-improving','validate',1.79563344707449030869e+09,1.79563344707864546781e+09,1,1,'{"num_tasks": 80, "num_held_out": 40, "end_token_ids": [1], "max_length": 32, "batch_size": 16}');
INSERT INTO "phases" VALUES('ftjob-improving','pilot',1.7956334470864465237e+09,1.79563344710493636132e+09,1,1,'{"state": {"round": 0, "current": {"checkpoint": "/home/wmss/base", "source": {"folder": "/home/wmss/base", "adapter": null, "states": null}}, "standing": {"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.2916666666666667, "standard_error": 0.09649802426406816, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.12995239998794275, "pass_at_k": 0.6666666666666666}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.375, "standard_error": 0.15669579263200217, "pass_at_k": 0.5}, "samples_per_task": 2}, "previous": null, "best": {"round": 0, "held_out": {"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.2916666666666667, "standard_error": 0.09649802426406816, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.12995239998794275, "pass_at_k": 0.6666666666666666}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.375, "standard_error": 0.15669579263200217, "pass_at_k": 0.5}, "samples_per_task": 2}, "checkpoint": {"checkpoint": "/home/wmss/base", "source": {"folder": "/home/wmss/base", "adapter": null, "states": null}}}, "standing_round": 0, "history": [{"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.2916666666666667, "standard_error": 0.09649802426406816, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.12995239998794275, "pass_at_k": 0.6666666666666666}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.375, "standard_error": 0.15669579263200217, "pass_at_k": 0.5}, "samples_per_task": 2}], "curriculum": {"round": 0, "focus": 0, "counts": [[0.0, 0.0], [0.0, 0.0]], "best": [0.0, 0.0], "budget_factor": 1, "rounds_below": 0, "rounds_waiting": 0, "reason": "round 1 of 2: level 1"}, "outcomes": [], "active": [], "saturated": 0, "starved": 0, "regressions": 0, "weak_driven": false, "learning_rate_factor": 1.0, "num_sampled": 0, "trained_rounds": 0}, "began_at": 1795633439.280476, "estimated_levels": null}');
INSERT INTO "phases" VALUES('ftjob-improving','plan',1.79563344711347317697e+09,1.79563344711745810503e+09,1,1,'{"levels": [{"level": 1, "purpose": "focus", "num_prompts": 32}], "num_prompts": 32, "num_samples": 64}');
INSERT INTO "phases" VALUES('ftjob-improving','generate',1.79563344712546586997e+09,1.7956334471358451843e+09,1,1,'{"num_samples": 64, "num_tokens": 300, "num_truncated": 0}');
INSERT INTO "phases" VALUES('ftjob-improving','verify',1.79563344714747738844e+09,1.79563344716051602359e+09,1,1,'{"reasons": {"wrong: other_text": 49, "correct: equal": 15}, "num_accepted": 15, "table": "/home/wmss/job/round-001/rollouts.parquet"}');
INSERT INTO "phases" VALUES('ftjob-improving','select',1.79563344717051506047e+09,1.79563344718884301178e+09,1,1,'{"counts": {"generated": 64, "finished": 64, "correct": 15, "distinct_tokens": 11, "distinct_text": 11, "capped": 11, "balanced": 11}, "num_selected": 11, "levels": {"1": 11}, "manifest_sha256": "db7cd1a23acbe51869b0ffcac696cc96ee14c1ca209db13b01f46805f3a78b80"}');
INSERT INTO "phases" VALUES('ftjob-improving','train',1.79563344720457506182e+09,1.79563344721053957941e+09,1,1,'{"checkpoint": "/home/wmss/runs/ftjob-1-train-1/step-0003/strong", "source": {"folder": "/home/wmss/runs/ftjob-1-train-1/step-0003/strong", "adapter": null, "states": null}, "num_steps": 3}');
INSERT INTO "phases" VALUES('ftjob-improving','evaluate',1.79563344721874690052e+09,1.79563344723301148418e+09,1,1,'{"held_out": {"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.4166666666666667, "standard_error": 0.13530735681433145, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.14378979466744174, "pass_at_k": 0.5833333333333334}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.4375, "standard_error": 0.17519122205668378, "pass_at_k": 0.5}, "samples_per_task": 2}, "errors": [[1, 0.0652791209833867], [2, 0.10660035817780522]]}');
INSERT INTO "phases" VALUES('ftjob-improving','decide',1.79563344724212360379e+09,1.79563344725585126871e+09,1,1,'{"round": 1, "label": "flat", "reading": {"label": "flat", "complexity": 8.749999999999998, "ratio": 0.13671874999999997, "v_minus": 0.16342719955409346, "v_plus": 0.8365728004459065, "v_plus_doubled": 0.9261931780308079, "predicted_next": 0.671875, "fitted_alpha": null}, "reason": "held-out pass@1 did not move by more than chance; round 2 of 2: level 2", "stop": null, "levels": [{"level": 1, "purpose": "focus", "num_sampled": 64, "num_accepted": 15, "interval_90": [0.1591590471835281, 0.3311381962850004], "num_truncated": 0, "num_distinct": 11, "num_selected": 11}, {"level": 2, "purpose": "none", "num_sampled": 0, "num_accepted": 0, "interval_90": null, "num_truncated": 0, "num_distinct": 0, "num_selected": 0}], "held_out": {"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.4166666666666667, "standard_error": 0.13530735681433145, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.14378979466744174, "pass_at_k": 0.5833333333333334}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.4375, "standard_error": 0.17519122205668378, "pass_at_k": 0.5}, "samples_per_task": 2}, "state": {"round": 1, "current": {"checkpoint": "/home/wmss/runs/ftjob-1-train-1/step-0003/strong", "source": {"folder": "/home/wmss/runs/ftjob-1-train-1/step-0003/strong", "adapter": null, "states": null}, "num_steps": 3}, "standing": {"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.4166666666666667, "standard_error": 0.13530735681433145, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.14378979466744174, "pass_at_k": 0.5833333333333334}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.4375, "standard_error": 0.17519122205668378, "pass_at_k": 0.5}, "samples_per_task": 2}, "previous": {"checkpoint": "/home/wmss/base", "source": {"folder": "/home/wmss/base", "adapter": null, "states": null}}, "best": {"round": 1, "held_out": {"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.4166666666666667, "standard_error": 0.13530735681433145, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.14378979466744174, "pass_at_k": 0.5833333333333334}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.4375, "standard_error": 0.17519122205668378, "pass_at_k": 0.5}, "samples_per_task": 2}, "checkpoint": {"checkpoint": "/home/wmss/runs/ftjob-1-train-1/step-0003/strong", "source": {"folder": "/home/wmss/runs/ftjob-1-train-1/step-0003/strong", "adapter": null, "states": null}, "num_steps": 3}}, "standing_round": 1, "history": [{"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.2916666666666667, "standard_error": 0.09649802426406816, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.12995239998794275, "pass_at_k": 0.6666666666666666}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.375, "standard_error": 0.15669579263200217, "pass_at_k": 0.5}, "samples_per_task": 2}, {"levels": [{"level": 1, "num_tasks": 12, "pass_at_1": 0.4166666666666667, "standard_error": 0.13530735681433145, "pass_at_k": 0.5}, {"level": 2, "num_tasks": 12, "pass_at_1": 0.5416666666666666, "standard_error": 0.14378979466744174, "pass_at_k": 0.5833333333333334}], "out_of_distribution": {"level": 0, "num_tasks": 8, "pass_at_1": 0.4375, "standard_error": 0.17519122205668378, "pass_at_k": 0.5}, "samples_per_task": 2}], "curriculum": {"round": 1, "focus": 1, "counts": [[15.0, 64.0], [0.0, 0.0]], "best": [0.234375, 0.0], "budget_factor": 1, "rounds_below": 0, "rounds_waiting": 0, "reason": "round 2 of 2: level 2"}, "outcomes": [{"num_sampled": 64, "num_accepted": 15, "score_before": 0.2916666666666667, "score_after": 0.4166666666666667, "standard_error": 0.0652791209833867}], "active": [1], "saturated": 0, "starved": 0, "regressions": 0, "weak_driven": false, "learning_rate_factor": 1.0, "num_sampled": 64, "trained_rounds": 1}}');
INSERT INTO "phases" VALUES('ftjob-improving','plan_2',1795633447.26045,1.79563344727578139302e+09,1,1,'{"levels": [{"level": 2, "purpose": "focus", "num_prompts": 32}], "num_prompts": 32, "num_samples": 64}');
INSERT INTO "phases" VALUES('ftjob-improving','generate_2',1.79563344728202915192e+09,1.79563344729358744618e+09,1,1,'{"num_samples": 64, "num_tokens": 314, "num_truncated": 2}');
INSERT INTO "phases" VALUES('ftjob-improving','verify_2',1.79563344730575108528e+09,1.79563344731966233257e+09,1,1,'{"reasons": {"correct: equal": 39, "wrong: other_text": 25}, "num_accepted": 39, "table": "/home/wmss/job/round-002/rollouts.parquet"}');
INSERT INTO "phases" VALUES('ftjob-improving','select_2',1.79563344732358551019e+09,1.79563344733033084868e+09,1,1,'{"counts": {"generated": 64, "finished": 62, "correct": 39, "distinct_tokens": 24, "distinct_text": 24, "capped": 24, "balanced": 24}, "num_selected": 24, "levels": {"2": 24}, "manifest_sha256": "aae358026d8e93b61184ba493b0af8c6238db6d180d17fbf5374250bdad9a03f"}');
INSERT INTO "phases" VALUES('ftjob-improving','train_2',1.7956334473379547596e+09,NULL,3,10,NULL);
INSERT INTO "phases" VALUES('ftjob-tuned','validate',1.79563344736937212939e+09,1.79563344737864851946e+09,1,1,'{"num_samples": 48, "num_tokens": 2254, "num_targets": 1410, "num_truncated": 0, "end_token_ids": [2], "max_length": 256, "batch_size": 6}');
INSERT INTO "phases" VALUES('ftjob-tuned','sft',1.79563344738633537292e+09,1.79563344740347433092e+09,1,1,'{"checkpoint": "/home/wmss/runs/ftjob-1-sft-1/step-0004/strong", "source": {"folder": "/home/wmss/runs/ftjob-1-sft-1/step-0004/strong", "adapter": null, "states": null}, "num_steps": 4, "saturated_at": null, "useful_weak": null}');
INSERT INTO "phases" VALUES('ftjob-tuned','export',1.79563344740688967705e+09,1.79563344741407299046e+09,1,1,'{"path": "/home/wmss/result", "name": "ft:qwen3::ftjob-1", "digest": "20f78015975312ec85c66dac6df23b8e57dc04bcb252d574a02c5c12eb6a7677", "num_bytes": 330442}');
INSERT INTO "phases" VALUES('ftjob-tuned','evaluate',1.79563344742088651655e+09,1.79563344743498563759e+09,1,1,'{"results": {"base": {"nll": 7.584773682182034, "mean_entropy": 1.800552506591578, "accuracy": {"pass_at_1": 0.0, "interval_95": [0.0, 0.2424940095530979], "num_correct": 0, "num_problems": 12, "truncated_share": 1.0, "max_new_tokens": 80}}, "result": {"nll": 6.667401195648644, "mean_entropy": 2.227463995701195, "accuracy": {"pass_at_1": 0.0, "interval_95": [0.0, 0.2424940095530979], "num_correct": 0, "num_problems": 12, "truncated_share": 1.0, "max_new_tokens": 80}}}}');
INSERT INTO "phases" VALUES('escore-running','validate',1.79563344747496676442e+09,1.79563344748413419721e+09,1,1,'{"num_samples": 48, "num_tokens": 2254, "num_targets": 1410, "num_truncated": 0, "max_length": 256}');
INSERT INTO "phases" VALUES('escore-running','score_1',1.79563344748732614522e+09,1.79563344750205850603e+09,1,1,'{"table": "/home/wmss/c/entropy/7cb5d809977414b2573e63c02b4350ed.parquet", "mean_entropy": 1.8090906025738995, "nll": 7.403433297172929, "top1": 0.02127659574468085, "provenance": {"engine": "torch", "version": "2.13.0+cpu", "dtype": "float32", "device": "cpu", "batch_invariant": true}, "tokens": "/home/wmss/c/entropy/7cb5d809977414b2573e63c02b4350ed.tokens.parquet", "digest": "e77402697bf67977a2247a2d197bd88eaf98884b825b39e1ed47ef8ff51c55e1", "num_tokens_scored": 2254, "seconds": 0.21195955199993932}');
INSERT INTO "phases" VALUES('escore-running','score_2',1.79563344750943469996e+09,NULL,3,10,NULL);
CREATE TABLE weak_checkpoints (
	number INTEGER NOT NULL, 
	id VARCHAR(255) NOT NULL, 
	created_at INTEGER NOT NULL, 
	name VARCHAR(1024) NOT NULL, 
	path TEXT NOT NULL, 
	revision VARCHAR(255), 
	content_key VARCHAR(255) NOT NULL, 
	architecture VARCHAR(255) NOT NULL, 
	num_parameters BIGINT NOT NULL, 
	vocab_size INTEGER NOT NULL, 
	weights_digest VARCHAR(255) NOT NULL, 
	tokenizer_digest VARCHAR(255) NOT NULL, 
	files JSON NOT NULL, 
	labels JSON, 
	PRIMARY KEY (number), 
	UNIQUE (content_key), 
	UNIQUE (id)
);
INSERT INTO "weak_checkpoints" VALUES(1,'weak-f74210978dff3081cc12a192',1795633446,'weak-one','/home/wmss/models/qwen3',NULL,'cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','Qwen3ForCausalLM',1000,100,'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','{"config.json": [1, 2]}','{"a": "b"}');
CREATE INDEX ix_checkpoints_job_id ON checkpoints (job_id);
CREATE INDEX events_of_job ON events (job_id, number);
CREATE INDEX ix_chat_requests_app ON chat_requests (app);
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE INDEX ix_jobs_request_digest ON jobs (request_digest);
COMMIT;
