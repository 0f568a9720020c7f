"""The same graph on Ray: models in replicas, one actor each, and caches as objects of Ray's store.

cluster        Replicas of models, shared by graphs; creates agents that take their turns there
connect        Start Ray on this machine, or join a cluster
messages       What driver and replicas send each other
object_store   Tensors in Ray's object store, in chunks
remote_agent   The driver's side of an agent
remote_engine  A sharer's engine in another replica
replica        The actor: one model, and the agents that use it
replica_set    The replicas of one model: start, choose, replace
stored_cache   KV caches whose tensors are in the object store
wait           Await Ray's references from asyncio and trio
"""
