variable "region" {
  description = "Where the bucket lies: that of the nodes, or every shard crosses regions."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket, as in s3://NAME. Globally unique."
  type        = string
}

variable "runs_days" {
  description = "Days after which the checkpoints of a run are deleted. Publish what is to stay: models/ is kept."
  type        = number
  default     = 60

  validation {
    condition     = var.runs_days >= 7
    error_message = "runs_days: at least 7, or a long run loses the checkpoint that it resumes from."
  }
}

variable "noncurrent_days" {
  description = "Days for which an overwritten or deleted object can be brought back."
  type        = number
  default     = 30

  validation {
    condition     = var.noncurrent_days >= 1
    error_message = "noncurrent_days: at least 1."
  }
}
