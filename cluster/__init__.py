"""The same graph on Ray: models in replicas, one actor each, and caches as objects of Ray's store.

address        Where an address leads, and whether anything answers there
asker          For whom an engine works, across processes
cluster        Replicas of models, shared by graphs; creates agents that take their turns there
connect        Start Ray on this machine, or join a cluster
event_log      The events of one turn in a replica
head           Whether the cluster's head still answers
messages       What driver and replicas send each other
nodes          The nodes of a cluster, as Ray lists them
object_store   Tensors in Ray's object store, in few objects
placement      Which replica goes to which node; needs no Ray
plan           What would go where, with memory and bytes per edge; needs no Ray
remote_agent   The driver's side of an agent
remote_engine  A sharer's engine in another replica
remote_tools   Tools that the driver calls for agents in replicas
replica        The actor: one model, and the agents that use it
replica_set    The replicas of one model: start, choose, replace
spoken         What a turn has told its listener, so that a second attempt repeats nothing
store_budget   How many bytes of caches may be under way in the object store
stored_cache   KV caches whose tensors are in the object store
turn_tasks     Run a replica's turns below one task, whose worker threads they share
wait           Await Ray's references from asyncio and trio
"""
