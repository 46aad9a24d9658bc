// Fastify + pg: schemas for what comes in and goes out, prepared statements, a cluster of two workers.
'use strict'

const cluster = require('node:cluster')
const fastify = require('fastify')
const pg = require('pg')

const WORKERS = 2
const CONNECTIONS = 8

// A JavaScript Date holds no microseconds, so the database writes the instants out.
const instant = (column) => `to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS ${column}`
const COLUMNS = `id, user_id, title, description, status, ${instant('created_at')}, ${instant('updated_at')}`
const LIST = {
  name: 'list',
  text: `SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 ORDER BY tasks.created_at DESC, id DESC LIMIT 1000`
}
const GET = { name: 'get', text: `SELECT ${COLUMNS} FROM tasks WHERE user_id = $1 AND id = $2` }
const CREATE = {
  name: 'create',
  text: `WITH owner AS (INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING)
         INSERT INTO tasks (user_id, title, description) VALUES ($1, $2, $3) RETURNING ${COLUMNS}`
}
const COMPLETE = {
  name: 'complete',
  text: `UPDATE tasks SET updated_at = now(),
                          status = CASE status WHEN 'complete' THEN 'incomplete' ELSE 'complete' END
         WHERE user_id = $1 AND id = $2 RETURNING ${COLUMNS}`
}

const task = {
  type: 'object',
  properties: {
    id: { type: 'integer' },
    user_id: { type: 'string' },
    title: { type: 'string' },
    description: { type: 'string', nullable: true },
    status: { type: 'string' },
    created_at: { type: 'string' },
    updated_at: { type: 'string' }
  }
}
const newTask = {
  type: 'object',
  required: ['title'],
  properties: {
    title: { type: 'string', minLength: 1, maxLength: 255, pattern: '\\S' },
    description: { type: 'string', nullable: true, maxLength: 5000 }
  }
}
const oneTask = {
  type: 'object',
  properties: { user_id: { type: 'string' }, task_id: { type: 'integer', minimum: 1 } }
}

function build () {
  // The driver gives 64-bit integers as strings.
  pg.types.setTypeParser(pg.types.builtins.INT8, Number)
  const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: CONNECTIONS })
  const app = fastify()

  app.register(require('@fastify/jwt'), {
    secret: process.env.JWT_SECRET,
    verify: { algorithms: ['HS256'], requiredClaims: ['exp', 'sub'] }
  })

  app.addHook('onRequest', async (request, reply) => {
    try {
      await request.jwtVerify()
    } catch {
      return reply.code(401).header('WWW-Authenticate', 'Bearer').send({ error: 'Unauthorized' })
    }
    if (request.user.sub !== request.params.user_id) {
      return reply.code(403).send({ error: 'Forbidden' })
    }
  })

  app.setErrorHandler((error, request, reply) => {
    const status = error.statusCode ?? 500
    reply.code(status).send({ error: status < 500 ? error.message : 'Internal server error' })
  })

  const found = (rows, reply) => rows[0] ?? reply.code(404).send({ error: 'Task not found' })

  app.get('/api/:user_id/tasks', { schema: { response: { 200: { type: 'array', items: task } } } }, async (request) => {
    const { rows } = await pool.query({ ...LIST, values: [request.params.user_id] })
    return rows
  })

  app.post('/api/:user_id/tasks', { schema: { body: newTask, response: { 201: task } } }, async (request, reply) => {
    const { title, description } = request.body
    const { rows } = await pool.query({ ...CREATE, values: [request.params.user_id, title, description] })
    return reply.code(201).send(rows[0])
  })

  app.get('/api/:user_id/tasks/:task_id', { schema: { params: oneTask, response: { 200: task } } },
    async (request, reply) => {
      const { user_id: userId, task_id: taskId } = request.params
      const { rows } = await pool.query({ ...GET, values: [userId, taskId] })
      return found(rows, reply)
    })

  app.patch('/api/:user_id/tasks/:task_id/complete', { schema: { params: oneTask, response: { 200: task } } },
    async (request, reply) => {
      const { user_id: userId, task_id: taskId } = request.params
      const { rows } = await pool.query({ ...COMPLETE, values: [userId, taskId] })
      return found(rows, reply)
    })

  return app
}

if (cluster.isPrimary) {
  for (let worker = 0; worker < WORKERS; worker++) cluster.fork()
} else {
  build().listen({ host: '127.0.0.1', port: Number(process.env.PORT) })
}
